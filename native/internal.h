/* What the files of the sidecar share. Not part of its interface, which is helios.h. */
#ifndef HELIOS_INTERNAL_H
#define HELIOS_INTERNAL_H

#define _POSIX_C_SOURCE 200809L
#define VK_NO_PROTOTYPES
#include "helios.h"
#include "vulkan/vulkan_core.h"

#include <pthread.h>
#include <stdarg.h>
#include <stddef.h>

#define EXPORT __attribute__((visibility("default")))
#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

/* ---- Errors (error.c) ---- */

/* Stores the message of this thread and returns `code`. */
int fail(int code, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* The same for a Vulkan call that did not return VK_SUCCESS: the code follows from the result, and the message names both.
 * `advice` is the end of the sentence. */
int fail_vulkan(const char *call, VkResult result, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* ---- Functions of Vulkan, found at run time (loader.c) ---- */

#define INSTANCE_FUNCTIONS(FUNCTION)                                                                                   \
    FUNCTION(DestroyInstance)                                                                                          \
    FUNCTION(EnumeratePhysicalDevices)                                                                                 \
    FUNCTION(EnumerateDeviceExtensionProperties)                                                                       \
    FUNCTION(GetPhysicalDeviceProperties)                                                                              \
    FUNCTION(GetPhysicalDeviceProperties2)                                                                             \
    FUNCTION(GetPhysicalDeviceFeatures2)                                                                               \
    FUNCTION(GetPhysicalDeviceMemoryProperties2)                                                                       \
    FUNCTION(GetPhysicalDeviceQueueFamilyProperties)                                                                   \
    FUNCTION(CreateDevice)                                                                                             \
    FUNCTION(GetDeviceProcAddr)

#define OPTIONAL_INSTANCE_FUNCTIONS(FUNCTION)                                                                          \
    FUNCTION(CreateDebugUtilsMessengerEXT)                                                                             \
    FUNCTION(DestroyDebugUtilsMessengerEXT)                                                                            \
    FUNCTION(GetPhysicalDeviceCooperativeMatrixPropertiesKHR)                                                          \
    FUNCTION(GetPhysicalDeviceCooperativeMatrixFlexibleDimensionsPropertiesNV)

#define DEVICE_FUNCTIONS(FUNCTION)                                                                                     \
    FUNCTION(DestroyDevice)                                                                                            \
    FUNCTION(DeviceWaitIdle)                                                                                           \
    FUNCTION(GetDeviceQueue)                                                                                           \
    FUNCTION(QueueSubmit2)                                                                                             \
    FUNCTION(CreateSemaphore)                                                                                          \
    FUNCTION(DestroySemaphore)                                                                                         \
    FUNCTION(WaitSemaphores)                                                                                           \
    FUNCTION(GetSemaphoreCounterValue)                                                                                 \
    FUNCTION(CreateBuffer)                                                                                             \
    FUNCTION(DestroyBuffer)                                                                                            \
    FUNCTION(GetBufferMemoryRequirements)                                                                              \
    FUNCTION(GetBufferDeviceAddress)                                                                                   \
    FUNCTION(AllocateMemory)                                                                                           \
    FUNCTION(FreeMemory)                                                                                               \
    FUNCTION(BindBufferMemory)                                                                                         \
    FUNCTION(MapMemory)                                                                                                \
    FUNCTION(CreateShaderModule)                                                                                       \
    FUNCTION(DestroyShaderModule)                                                                                      \
    FUNCTION(CreatePipelineLayout)                                                                                     \
    FUNCTION(DestroyPipelineLayout)                                                                                    \
    FUNCTION(CreatePipelineCache)                                                                                      \
    FUNCTION(DestroyPipelineCache)                                                                                     \
    FUNCTION(GetPipelineCacheData)                                                                                     \
    FUNCTION(CreateComputePipelines)                                                                                   \
    FUNCTION(DestroyPipeline)                                                                                          \
    FUNCTION(CreateCommandPool)                                                                                        \
    FUNCTION(DestroyCommandPool)                                                                                       \
    FUNCTION(AllocateCommandBuffers)                                                                                   \
    FUNCTION(FreeCommandBuffers)                                                                                       \
    FUNCTION(BeginCommandBuffer)                                                                                       \
    FUNCTION(EndCommandBuffer)                                                                                         \
    FUNCTION(CmdBindPipeline)                                                                                          \
    FUNCTION(CmdPushConstants)                                                                                         \
    FUNCTION(CmdDispatch)                                                                                              \
    FUNCTION(CmdPipelineBarrier2)                                                                                      \
    FUNCTION(CreateQueryPool)                                                                                          \
    FUNCTION(DestroyQueryPool)                                                                                         \
    FUNCTION(CmdResetQueryPool)                                                                                        \
    FUNCTION(CmdWriteTimestamp2)                                                                                       \
    FUNCTION(GetQueryPoolResults)

#define DECLARE_FUNCTION(name) PFN_vk##name name;

/* Validation messages; drivers may report them from threads of their own. */
typedef struct message_log {
    pthread_mutex_t lock;
    char *text; /* NULL, or lines ended by a zero */
    size_t length, capacity;
} message_log;

typedef struct instance {
    VkInstance handle;
    VkDebugUtilsMessengerEXT messenger;
    uint32_t validation_version; /* the version of Vulkan that the validation layers know; 0 without them */
    INSTANCE_FUNCTIONS(DECLARE_FUNCTION)
    OPTIONAL_INSTANCE_FUNCTIONS(DECLARE_FUNCTION)
} instance;

typedef struct device_functions {
    DEVICE_FUNCTIONS(DECLARE_FUNCTION)
} device_functions;

/* Opens the loader and gets an instance: that of the process, or, with a log, one of its own whose validation layers report
 * to the log, which must outlive it. On failure nothing is left to destroy. */
int create_instance(instance *made, message_log *log);
void destroy_instance(instance *made);

/* The physical devices; the caller frees `*devices`. HELIOS_NO_DEVICE when there is none. */
int list_physical_devices(const instance *from, VkPhysicalDevice **devices, uint32_t *count);

/* The functions of a device, without the loader in between. */
int load_device_functions(const instance *from, VkDevice device, device_functions *functions);

/* ---- What a device offers (probe.c, describe.c) ---- */

typedef struct probe {
    VkPhysicalDevice physical;
    VkPhysicalDeviceProperties properties; /* all that is filled when the device is older than Vulkan 1.3 */
    VkPhysicalDeviceVulkan11Properties properties11;
    VkPhysicalDeviceVulkan12Properties properties12;
    VkPhysicalDeviceVulkan13Properties properties13;
    VkPhysicalDeviceShaderSMBuiltinsPropertiesNV multiprocessors;
    VkPhysicalDeviceShaderCorePropertiesAMD compute_units;
    VkPhysicalDeviceShaderCoreProperties2AMD active_compute_units;
    VkPhysicalDeviceFeatures features;
    VkPhysicalDeviceVulkan11Features features11;
    VkPhysicalDeviceVulkan12Features features12;
    VkPhysicalDeviceVulkan13Features features13;
    VkPhysicalDeviceCooperativeMatrixFeaturesKHR matrix_features;
    VkPhysicalDeviceCooperativeMatrix2FeaturesNV workgroup_matrix_features;
    VkPhysicalDeviceShaderBfloat16FeaturesKHR bfloat16_features;
    VkPhysicalDeviceMemoryProperties memory;
    VkPhysicalDeviceMemoryBudgetPropertiesEXT budget;
    int has_matrix, has_workgroup_matrix, has_bfloat16, has_budget; /* extensions */
    int has_multiprocessors, has_compute_units, has_active_compute_units;
    uint32_t queue_family, timestamp_bits;
    uint32_t matrix_count, workgroup_matrix_count;
    VkCooperativeMatrixPropertiesKHR *matrices;                             /* subgroup scope */
    VkCooperativeMatrixFlexibleDimensionsPropertiesNV *workgroup_matrices; /* workgroup scope */
    const char *missing[16]; /* what Helios requires and the device lacks, NULL at the end */
} probe;

/* Asks a device for all of the above; free_probe releases the lists, also after a failure. */
int probe_device(const instance *from, VkPhysicalDevice physical, probe *answer);
void free_probe(probe *answer);

/* Whether a matrix product of f16 (or bf16) operands with f32 accumulation runs on the matrix units. */
int has_matrix_product(const probe *device, VkComponentTypeKHR operands);
int has_workgroup_matrix_product(const probe *device, VkComponentTypeKHR operands);

/* How many multiprocessors (NVIDIA) or compute units (AMD) there are; 0 where the driver does not say. */
uint32_t count_multiprocessors(const probe *device);

/* Writes the missing features as text, divided by commas. */
void list_missing(const probe *device, char *text, size_t capacity);

/* ---- Tables from identifiers to objects (table.c) ---- */

/* An identifier is a slot's number and how often it was used, so those of freed objects are not valid again. */
typedef struct table {
    struct slot {
        void *object; /* NULL when free */
        uint32_t uses, next_free;
    } *slots;
    uint32_t count, capacity, first_free; /* first_free is a slot's number plus 1, or 0 */
} table;

/* The identifier of a new object, or 0 when there is no memory for the table. */
uint64_t table_add(table *in, void *object);
/* The object, or NULL when there is none of that identifier. */
void *table_find(const table *in, uint64_t identifier);
/* The same, and the identifier ends. */
void *table_remove(table *in, uint64_t identifier);

/* ---- The device: its objects and its state (device.c opens and closes it) ---- */

typedef struct allocation {
    VkBuffer buffer;
    VkDeviceMemory memory;
    VkDeviceSize bytes;
    uint32_t heap;
} allocation;

typedef struct pipeline {
    VkPipeline handle;
    VkPipelineLayout layout;
    uint32_t push_bytes;
} pipeline;

typedef struct program {
    VkCommandBuffer commands;
    VkQueryPool timestamps; /* VK_NULL_HANDLE without HELIOS_PROGRAM_TIMESTAMPS */
    uint32_t dispatches, flags;
    uint64_t submitted; /* timeline value of its last submit; 0 before the first */
} program;

/* Destroys an object of one kind. Call with the lock held. */
typedef void destroyer(helios_device *device, void *object);

/* An object that was freed while the device may still use it. */
typedef struct retired {
    uint64_t timeline_value; /* reached when it may be destroyed */
    void *object;
    destroyer *destroy;
} retired;

struct helios_device {
    pthread_mutex_t lock; /* guards everything below but what Vulkan guards itself */
    instance instance;
    message_log log;
    probe probe;
    VkDevice handle;
    VkQueue queue;
    device_functions vk;
    VkSemaphore timeline;
    uint64_t submitted; /* the timeline value of the last submit */
    _Atomic int lost;
    table allocations, pipelines, programs;
    uint64_t heap_usage[VK_MAX_MEMORY_HEAPS]; /* bytes allocated here */
    VkPipelineLayout layouts[HELIOS_PUSH_BYTES / 4 + 1];
    VkPipelineCache cache;
    char *cache_path;    /* NULL: no file */
    uint64_t compiled;   /* pipelines made since the cache was read or written */
    VkCommandPool command_pool;
    VkCommandBuffer spare[64]; /* command buffers to be used again */
    uint32_t spare_count;
    retired *retired; /* in the order of their timeline values */
    uint32_t retired_count, retired_capacity;
};

destroyer destroy_allocation, destroy_program, destroy_pipeline; /* memory.c, program.c, pipeline.c */

/* ---- The timeline (timeline.c) ---- */

/* As fail_vulkan; remembers that the device is lost when that is the result. */
#define FAIL_DEVICE(device, call, result, ...) fail_vulkan(call, note_result(device, result), __VA_ARGS__)
VkResult note_result(helios_device *device, VkResult result);

/* What to do about a lost device: the end of a sentence. */
extern const char lost_advice[];

/* HELIOS_DEVICE_LOST if a call has said so before. */
int check_not_lost(const helios_device *device);

/* Waits for a timeline value that was submitted. */
int wait_for(helios_device *device, uint64_t timeline_value, uint64_t timeout_nanoseconds);

/* ---- Retirement (retirement.c); call all of it with the lock held ---- */

/* Destroys an object, at once if the device is idle, else when it has done what is submitted now. */
int retire(helios_device *device, void *object, destroyer *destroy);

/* Destroys what was retired and is no longer in use. */
int destroy_retired(helios_device *device);

/* Destroys all that was retired; the device is idle. */
void end_retirement(helios_device *device);

/* ---- Pipelines (pipeline.c, pipeline_cache.c, spirv.c) ---- */

/* Makes device->cache from the file, if that is whole and this device's. */
int load_pipeline_cache(helios_device *device, const char *path);

/* Refuses a module that is damaged, needs what the device lacks or has a workgroup too large for it. */
int check_spirv(const probe *device, const uint32_t *words, uint64_t count, const uint32_t *constants,
                uint32_t constant_count);

#endif
