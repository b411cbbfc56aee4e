// FlashInfer's samplers behind plain C, so that they run where its package does not fit: no line of theirs is copied.
#include <flashinfer/sampling.cuh>

#include <flashinfer/air_top_p.cuh>

using namespace flashinfer::sampling;

extern "C" {

int softmax(float* logits, float* probs, unsigned rows, unsigned vocab, float* temperature, void* workspace, size_t bytes,
            cudaStream_t stream) {
  return OnlineSoftmax<float>(logits, probs, rows, vocab, temperature, 1.0f, workspace, bytes, true, stream);
}

int sample(float* logits, int* ids, unsigned rows, unsigned vocab, uint64_t seed, uint64_t offset, cudaStream_t stream) {
  return SamplingFromLogits<float, int>(logits, ids, nullptr, rows, vocab, true, nullptr, seed, nullptr, offset, stream);
}

int sample_k_p(float* probs, int* k, float* p, int* ids, bool* valid, unsigned rows, unsigned vocab, uint64_t seed, uint64_t offset,
               cudaStream_t stream) {
  return TopKTopPSamplingFromProb<float, int>(probs, k, p, ids, valid, nullptr, rows, 0, 1.0f, vocab, true, nullptr, seed, nullptr,
                                              offset, stream);
}

int sample_min_p(float* probs, float* min_p, int* ids, bool* valid, unsigned rows, unsigned vocab, uint64_t seed, uint64_t offset,
                 cudaStream_t stream) {
  return MinPSamplingFromProb<float, int>(probs, min_p, ids, valid, nullptr, rows, 0.0f, vocab, true, nullptr, seed, nullptr, offset,
                                          stream);
}

int renorm_k(float* probs, float* out, int* k, unsigned rows, unsigned vocab, void* states, cudaStream_t stream) {
  return RadixTopKRenormProbMultiCTA<float, int>(probs, out, k, rows, 0, vocab, static_cast<RadixRowState*>(states), false, stream);
}

int renorm_p(float* probs, float* out, float* p, unsigned rows, unsigned vocab, void* workspace, cudaStream_t stream) {
  return air_top_p::AirTopPRenormProb<false, float>(probs, out, p, rows, 1.0f, vocab, workspace, stream);
}
}
