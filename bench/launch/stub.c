/* A CUDA driver that runs nothing: Triton's own launcher can be called, and timed, without a GPU.
 *
 * It refuses what a device of compute capability 9.0 would refuse of a launch or of a tensor map.
 * Limits: CUDA C++ Programming Guide, "Technical Specifications per Compute Capability", and the
 * driver API's cuTensorMapEncodeTiled. */
#include <cuda.h>
#include <stdint.h>
#include <string.h>

#define SHARED_PER_BLOCK 232448
#define SHARED_PER_SM 233472

static CUcontext context = (CUcontext)0x10;
static long launches, boxes, blocks, cluster;

long stub_launches(void) { return launches; }
/* Bytes of one box of each tensor map made so far, added up. */
long stub_boxes(void) { return boxes; }
/* Blocks of the last launch, and how many of them make a cluster. */
long stub_blocks(void) { return blocks; }
long stub_cluster(void) { return cluster; }

CUresult cuInit(unsigned flags) { return CUDA_SUCCESS; }
CUresult cuDriverGetVersion(int *v) { *v = CUDA_VERSION; return CUDA_SUCCESS; }
CUresult cuGetErrorString(CUresult e, const char **s) {
  *s = "refused by the stub driver: a limit of the device";
  return CUDA_SUCCESS;
}
CUresult cuCtxGetCurrent(CUcontext *c) { *c = context; return CUDA_SUCCESS; }
CUresult cuCtxSetCurrent(CUcontext c) { return CUDA_SUCCESS; }
CUresult cuCtxGetDevice(CUdevice *d) { *d = 0; return CUDA_SUCCESS; }
CUresult cuCtxGetLimit(size_t *v, CUlimit l) { *v = 1 << 20; return CUDA_SUCCESS; }
CUresult cuCtxSetLimit(CUlimit l, size_t v) { return CUDA_SUCCESS; }
CUresult cuDeviceGet(CUdevice *d, int i) { *d = i; return CUDA_SUCCESS; }
CUresult cuDeviceGetCount(int *n) { *n = 1; return CUDA_SUCCESS; }
CUresult cuDevicePrimaryCtxRetain(CUcontext *c, CUdevice d) { *c = context; return CUDA_SUCCESS; }

CUresult cuDeviceGetAttribute(int *v, CUdevice_attribute a, CUdevice d) {
  switch (a) {
  case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: *v = 9; break;
  case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: *v = 0; break;
  case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: *v = SHARED_PER_BLOCK; break;
  case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR: *v = SHARED_PER_SM; break;
  case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: *v = 132; break;
  case CU_DEVICE_ATTRIBUTE_WARP_SIZE: *v = 32; break;
  case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK: *v = 65536; break;
  default: *v = 0;
  }
  return CUDA_SUCCESS;
}

/* A cubin is an ELF file; nothing else of it is looked at. */
CUresult cuModuleLoadData(CUmodule *m, const void *data) {
  if (memcmp(data, "\177ELF", 4) != 0) return CUDA_ERROR_INVALID_IMAGE;
  *m = (CUmodule)0x20;
  return CUDA_SUCCESS;
}
CUresult cuModuleUnload(CUmodule m) { return CUDA_SUCCESS; }
CUresult cuModuleGetFunction(CUfunction *f, CUmodule m, const char *name) {
  *f = (CUfunction)0x30;
  return CUDA_SUCCESS;
}
CUresult cuFuncGetAttribute(int *v, CUfunction_attribute a, CUfunction f) {
  *v = a == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : 0;
  return CUDA_SUCCESS;
}
CUresult cuFuncSetAttribute(CUfunction f, CUfunction_attribute a, int v) { return CUDA_SUCCESS; }
CUresult cuFuncSetCacheConfig(CUfunction f, CUfunc_cache c) { return CUDA_SUCCESS; }
CUresult cuOccupancyMaxActiveClusters(int *n, CUfunction f, const CUlaunchConfig *c) {
  *n = 1;
  return CUDA_SUCCESS;
}
CUresult cuPointerGetAttribute(void *d, CUpointer_attribute a, CUdeviceptr p) {
  *(CUdeviceptr *)d = p;
  return CUDA_SUCCESS;
}
CUresult cuStreamIsCapturing(CUstream s, CUstreamCaptureStatus *v) {
  *v = CU_STREAM_CAPTURE_STATUS_NONE;
  return CUDA_SUCCESS;
}

CUresult cuTensorMapEncodeTiled(CUtensorMap *map, CUtensorMapDataType type, cuuint32_t rank, void *address,
                                const cuuint64_t *dims, const cuuint64_t *strides, const cuuint32_t *box,
                                const cuuint32_t *element_strides, CUtensorMapInterleave interleave,
                                CUtensorMapSwizzle swizzle, CUtensorMapL2promotion l2,
                                CUtensorMapFloatOOBfill fill) {
  int bad = rank < 1 || rank > 5 || (uintptr_t)address % 16 != 0;
  for (cuuint32_t i = 0; !bad && i < rank; i++)
    bad = dims[i] == 0 || dims[i] > (1ull << 32) || box[i] == 0 || box[i] > 256 ||
          (i + 1 < rank && (strides[i] % 16 != 0 || strides[i] >= (1ull << 40)));
  cuuint64_t row = box[0] * (type == CU_TENSOR_MAP_DATA_TYPE_UINT8 ? 1u : 2u);
  if (!bad && type <= CU_TENSOR_MAP_DATA_TYPE_UINT16) {
    bad = row % 16 != 0 || (swizzle == CU_TENSOR_MAP_SWIZZLE_32B && row > 32) ||
          (swizzle == CU_TENSOR_MAP_SWIZZLE_64B && row > 64) ||
          (swizzle == CU_TENSOR_MAP_SWIZZLE_128B && row > 128);
  }
  for (cuuint32_t i = 1; !bad && i < rank; i++) row *= box[i];
  boxes += bad ? 0 : (long)row;
  return bad ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}

static CUresult launch(unsigned x, unsigned y, unsigned z, unsigned threads, unsigned shared, unsigned ctas) {
  if (x == 0 || x > 2147483647u || y == 0 || y > 65535 || z == 0 || z > 65535 || threads == 0 ||
      threads > 1024 || shared > SHARED_PER_BLOCK || ctas == 0 || ctas > 8 || x % ctas != 0)
    return CUDA_ERROR_INVALID_VALUE;
  launches++;
  blocks = (long)x * y * z;
  cluster = ctas;
  return CUDA_SUCCESS;
}
CUresult cuLaunchKernelEx(const CUlaunchConfig *c, CUfunction f, void **params, void **extra) {
  unsigned ctas = 1;
  for (unsigned i = 0; i < c->numAttrs; i++)
    if (c->attrs[i].id == CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION)
      ctas = c->attrs[i].value.clusterDim.x * c->attrs[i].value.clusterDim.y * c->attrs[i].value.clusterDim.z;
  return launch(c->gridDimX, c->gridDimY, c->gridDimZ, c->blockDimX * c->blockDimY * c->blockDimZ,
                c->sharedMemBytes, ctas);
}
/* For Triton 3.3. */
CUresult cuLaunchKernel(CUfunction f, unsigned x, unsigned y, unsigned z, unsigned bx, unsigned by, unsigned bz,
                        unsigned shared, CUstream s, void **params, void **extra) {
  return launch(x, y, z, bx * by * bz, shared, 1);
}
