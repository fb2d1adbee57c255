"""The bundled hydra configuration (``config.yaml``); a package so that it is installed with the rest."""
