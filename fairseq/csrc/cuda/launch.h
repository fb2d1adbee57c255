// Launchers of the row kernels: what the binding to torch calls, free of both torch's and CUDA's headers.
#pragma once

#include "../common/attention_rows.h"

namespace fairseq {

enum class Element { Float32, BFloat16, Float16 };

// Both return what CUDA said: 0, or the number of an error. `stream` is a cudaStream_t.
int launch_forward_rows(Element type, const Rows<AlibiTerm<>>& rows, void* stream);
int launch_backward_rows(Element type, const Rows<AlibiTerm<>>& rows, void* stream);

}  // namespace fairseq
