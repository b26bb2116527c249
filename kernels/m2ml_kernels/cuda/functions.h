// What the bodies share. A body is the inside of a function that mx.fast.cuda_kernel writes around it; every input is a
// pointer, and MLX tells compiled kernels apart by their template arguments, so each dtype is one of them.

// x * sigmoid(x), whose left tail is halved before it is squared, so that it is not lost where e is subnormal.
__device__ inline float silu(float x) {
  const float root = expf(-0.5f * fabsf(x));
  return (x < 0.0f ? x * root * root : x) / (1.0f + root * root);
}

// The sum of a value of each thread of a block of whole warps; every thread gets it.
__device__ inline float block_sum(float value, float* partial) {
  for (int step = 16; step; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = value;
  __syncthreads();
  value = threadIdx.x % 32 < blockDim.x / 32 ? partial[threadIdx.x % 32] : 0.0f;
  for (int step = 16; step; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
  return value;
}
