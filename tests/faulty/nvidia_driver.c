/* A stand-in for libnvidia-ml.so.1, for NVIDIA's own Python client to load: one idle GPU, whose driver fails with the
   NVML error number that the file named by SO8T_TEST_DRIVER holds, for as long as that file is there. */
#include <stdio.h>
#include <stdlib.h>

static int trouble(void) {
    const char *path = getenv("SO8T_TEST_DRIVER");
    FILE *file = path ? fopen(path, "r") : NULL;
    int code = 0;
    if (file) {
        if (fscanf(file, "%d", &code) != 1) code = 0;
        fclose(file);
    }
    return code;
}

int nvmlInitWithFlags(unsigned flags) { (void)flags; return trouble(); }
int nvmlShutdown(void) { return 0; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 1; return trouble(); }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) { *device = (void *)(size_t)(index + 1); return trouble(); }
int nvmlDeviceGetMemoryInfo(void *device, unsigned long long *total_free_used) {
    (void)device;
    total_free_used[0] = 12ULL << 30;
    total_free_used[1] = 11ULL << 30;
    total_free_used[2] = 1ULL << 30;
    return trouble();
}
int nvmlDeviceGetComputeRunningProcesses_v3(void *device, unsigned *count, void *list) {
    (void)device, (void)list;
    *count = 0;
    return trouble();
}
