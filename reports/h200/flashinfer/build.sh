#!/bin/sh
# build.sh HEADERS: HEADERS is flashinfer/data/include of the unpacked wheel of flashinfer-python 0.7.2.post1; flags as its JIT passes them.
set -e
here=$(dirname "$0")
nvcc -std=c++17 -use_fast_math -O3 -DNDEBUG -DFLASHINFER_ENABLE_F16 -DFLASHINFER_ENABLE_BF16 -DFLASHINFER_ENABLE_FP8_E4M3 \
  -DFLASHINFER_ENABLE_FP8_E5M2 -gencode=arch=compute_90a,code=sm_90a -I "$1" -shared -Xcompiler -fPIC "$here/kernels.cu" \
  -o "$here/flashinfer/kernels.so"
