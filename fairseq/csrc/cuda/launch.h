// Launchers of the row kernels: what the binding to torch calls, free of both torch's and CUDA's headers.
#pragma once

#include "../common/attention_rows.h"

namespace fairseq {

enum class Element { Float32, BFloat16, Float16 };

// These return what CUDA said: 0, or the number of an error. `stream` is a cudaStream_t. Made for all FS_SCORE_TERMS.
template <class Term>
int launch_forward_rows(Element type, const Rows<Term>& rows, void* stream);
template <class Term>
int launch_backward_rows(Element type, const Rows<Term>& rows, void* stream);
template <class Term>
int launch_backward_columns(Element type, const Rows<Term>& rows, void* stream);

}  // namespace fairseq
