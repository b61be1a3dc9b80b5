/* A Vulkan loader that fails when it is told to: the one that REAL_VULKAN names, but the function that the environment
 * variable VULKAN_FAULT names returns the VkResult behind its colon, as in "vkAllocateMemory:-2". It also counts
 * instances and remembers what pipeline caches and buffers are made from. Of the extensions that count multiprocessors
 * each device has the one that VULKAN_EXTENSION names, whatever the driver has. */
#define VK_NO_PROTOTYPES
#include "vulkan/vulkan_core.h"

#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

static PFN_vkGetInstanceProcAddr real_instance_function;
static PFN_vkGetDeviceProcAddr real_device_function;

/* The result that a function is to return; VK_SUCCESS when it is to work. */
static VkResult fault(const char *name) {
    const char *wanted = getenv("VULKAN_FAULT");
    size_t length = strlen(name);
    if (wanted == NULL || strncmp(wanted, name, length) != 0 || wanted[length] != ':') return VK_SUCCESS;
    return (VkResult)atoi(wanted + length + 1);
}

#define FAULTY(name, parameters, arguments)                      \
    static PFN_vk##name real_##name;                             \
    static VkResult VKAPI_CALL faulty_##name parameters {        \
        VkResult result = fault("vk" #name);                     \
        return result == VK_SUCCESS ? real_##name arguments : result; \
    }

#define CREATE(name, object)                                                                             \
    FAULTY(Create##name,                                                                                 \
           (VkDevice device, const Vk##name##CreateInfo *info, const VkAllocationCallbacks *none, object *made), \
           (device, info, none, made))

CREATE(Semaphore, VkSemaphore)
CREATE(CommandPool, VkCommandPool)
CREATE(PipelineLayout, VkPipelineLayout)
CREATE(ShaderModule, VkShaderModule)
CREATE(QueryPool, VkQueryPool)
FAULTY(EnumeratePhysicalDevices, (VkInstance instance, uint32_t *count, VkPhysicalDevice *devices),
       (instance, count, devices))

static int counts_multiprocessors(const char *extension) {
    return strcmp(extension, VK_NV_SHADER_SM_BUILTINS_EXTENSION_NAME) == 0 ||
           strcmp(extension, VK_AMD_SHADER_CORE_PROPERTIES_EXTENSION_NAME) == 0 ||
           strcmp(extension, VK_AMD_SHADER_CORE_PROPERTIES_2_EXTENSION_NAME) == 0;
}

static PFN_vkEnumerateDeviceExtensionProperties real_EnumerateDeviceExtensionProperties;
static VkResult VKAPI_CALL faulty_EnumerateDeviceExtensionProperties(VkPhysicalDevice device, const char *layer,
                                                                     uint32_t *count,
                                                                     VkExtensionProperties *properties) {
    const char *added = getenv("VULKAN_EXTENSION");
    VkResult result = fault("vkEnumerateDeviceExtensionProperties");
    if (result != VK_SUCCESS) return result;
    uint32_t room = *count;
    result = real_EnumerateDeviceExtensionProperties(device, layer, count, properties);
    for (uint32_t i = 0; properties != NULL && i < *count; i++)
        if (counts_multiprocessors(properties[i].extensionName)) strcpy(properties[i].extensionName, "");
    if (added != NULL && properties != NULL && *count < room)
        strcpy(properties[*count].extensionName, added);
    *count += added != NULL;
    return result;
}

/* The subgroup operations in the number behind the colon are missing, and multiprocessors are counted, as by extensions. */
static PFN_vkGetPhysicalDeviceProperties2 real_GetPhysicalDeviceProperties2;
static void VKAPI_CALL faulty_GetPhysicalDeviceProperties2(VkPhysicalDevice device, VkPhysicalDeviceProperties2 *all) {
    real_GetPhysicalDeviceProperties2(device, all);
    for (VkBaseOutStructure *each = all->pNext; each != NULL; each = each->pNext) {
        if (each->sType == VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_1_PROPERTIES)
            ((VkPhysicalDeviceVulkan11Properties *)each)->subgroupSupportedOperations &=
                ~(VkSubgroupFeatureFlags)fault("vkGetPhysicalDeviceProperties2");
        if (each->sType == VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SHADER_SM_BUILTINS_PROPERTIES_NV)
            ((VkPhysicalDeviceShaderSMBuiltinsPropertiesNV *)each)->shaderSMCount = 46;
        if (each->sType == VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SHADER_CORE_PROPERTIES_2_AMD)
            ((VkPhysicalDeviceShaderCoreProperties2AMD *)each)->activeComputeUnitCount = 36;
        if (each->sType == VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SHADER_CORE_PROPERTIES_AMD) {
            VkPhysicalDeviceShaderCorePropertiesAMD *units = (VkPhysicalDeviceShaderCorePropertiesAMD *)each;
            units->shaderEngineCount = 4;
            units->shaderArraysPerEngineCount = 2;
            units->computeUnitsPerShaderArray = 5;
        }
    }
}

FAULTY(CreateDevice,
       (VkPhysicalDevice physical, const VkDeviceCreateInfo *info, const VkAllocationCallbacks *none, VkDevice *made),
       (physical, info, none, made))
FAULTY(AllocateMemory,
       (VkDevice device, const VkMemoryAllocateInfo *info, const VkAllocationCallbacks *none, VkDeviceMemory *made),
       (device, info, none, made))
FAULTY(BindBufferMemory, (VkDevice device, VkBuffer buffer, VkDeviceMemory memory, VkDeviceSize offset),
       (device, buffer, memory, offset))
FAULTY(MapMemory,
       (VkDevice device, VkDeviceMemory memory, VkDeviceSize offset, VkDeviceSize size, VkMemoryMapFlags flags, void **data),
       (device, memory, offset, size, flags, data))
FAULTY(CreateComputePipelines,
       (VkDevice device, VkPipelineCache cache, uint32_t count, const VkComputePipelineCreateInfo *info,
        const VkAllocationCallbacks *none, VkPipeline *made),
       (device, cache, count, info, none, made))
FAULTY(GetPipelineCacheData, (VkDevice device, VkPipelineCache cache, size_t *size, void *data),
       (device, cache, size, data))
FAULTY(AllocateCommandBuffers, (VkDevice device, const VkCommandBufferAllocateInfo *info, VkCommandBuffer *made),
       (device, info, made))
FAULTY(BeginCommandBuffer, (VkCommandBuffer commands, const VkCommandBufferBeginInfo *info), (commands, info))
FAULTY(EndCommandBuffer, (VkCommandBuffer commands), (commands))
FAULTY(QueueSubmit2, (VkQueue queue, uint32_t count, const VkSubmitInfo2 *info, VkFence fence),
       (queue, count, info, fence))
FAULTY(WaitSemaphores, (VkDevice device, const VkSemaphoreWaitInfo *info, uint64_t timeout), (device, info, timeout))
FAULTY(GetSemaphoreCounterValue, (VkDevice device, VkSemaphore semaphore, uint64_t *value), (device, semaphore, value))
FAULTY(GetQueryPoolResults,
       (VkDevice device, VkQueryPool pool, uint32_t first, uint32_t count, size_t size, void *data, VkDeviceSize stride,
        VkQueryResultFlags flags),
       (device, pool, first, count, size, data, stride, flags))

size_t instances_made;

static PFN_vkCreateInstance real_CreateInstance;
static VkResult VKAPI_CALL faulty_CreateInstance(const VkInstanceCreateInfo *info, const VkAllocationCallbacks *none,
                                                 VkInstance *made) {
    VkResult result = fault("vkCreateInstance");
    if (result == VK_SUCCESS) result = real_CreateInstance(info, none, made);
    instances_made += result == VK_SUCCESS;
    return result;
}

size_t initial_bytes; /* that the last pipeline cache was made from */

static PFN_vkCreatePipelineCache real_CreatePipelineCache;
static VkResult VKAPI_CALL faulty_CreatePipelineCache(VkDevice device, const VkPipelineCacheCreateInfo *info,
                                                      const VkAllocationCallbacks *none, VkPipelineCache *made) {
    VkResult result = fault("vkCreatePipelineCache");
    initial_bytes = info->initialDataSize;
    return result == VK_SUCCESS ? real_CreatePipelineCache(device, info, none, made) : result;
}

size_t buffer_bytes; /* of the last buffer */

static PFN_vkCreateBuffer real_CreateBuffer;
static VkResult VKAPI_CALL faulty_CreateBuffer(VkDevice device, const VkBufferCreateInfo *info,
                                               const VkAllocationCallbacks *none, VkBuffer *made) {
    VkResult result = fault("vkCreateBuffer");
    buffer_bytes = (size_t)info->size;
    return result == VK_SUCCESS ? real_CreateBuffer(device, info, none, made) : result;
}

/* Addresses are moved by the number behind the colon, as if the driver aligned them less. */
static PFN_vkGetBufferDeviceAddress real_GetBufferDeviceAddress;
static VkDeviceAddress VKAPI_CALL faulty_GetBufferDeviceAddress(VkDevice device, const VkBufferDeviceAddressInfo *info) {
    return real_GetBufferDeviceAddress(device, info) + (VkDeviceAddress)fault("vkGetBufferDeviceAddress");
}

#define ANY(function) ((PFN_vkVoidFunction)(function))
#define REPLACE(function)                                    \
    if (strcmp(name, "vk" #function) == 0 && found != NULL) { \
        real_##function = (PFN_vk##function)found;           \
        return ANY(faulty_##function);                       \
    }

static PFN_vkVoidFunction VKAPI_CALL device_function(VkDevice device, const char *name) {
    PFN_vkVoidFunction found = real_device_function(device, name);
    REPLACE(CreateBuffer)
    REPLACE(CreateSemaphore)
    REPLACE(CreateCommandPool)
    REPLACE(CreatePipelineCache)
    REPLACE(CreatePipelineLayout)
    REPLACE(CreateShaderModule)
    REPLACE(CreateQueryPool)
    REPLACE(AllocateMemory)
    REPLACE(BindBufferMemory)
    REPLACE(MapMemory)
    REPLACE(CreateComputePipelines)
    REPLACE(GetPipelineCacheData)
    REPLACE(AllocateCommandBuffers)
    REPLACE(BeginCommandBuffer)
    REPLACE(EndCommandBuffer)
    REPLACE(QueueSubmit2)
    REPLACE(WaitSemaphores)
    REPLACE(GetSemaphoreCounterValue)
    REPLACE(GetQueryPoolResults)
    REPLACE(GetBufferDeviceAddress)
    return found;
}

PFN_vkVoidFunction VKAPI_CALL vkGetInstanceProcAddr(VkInstance instance, const char *name) {
    if (real_instance_function == NULL)
        real_instance_function =
            (PFN_vkGetInstanceProcAddr)dlsym(dlopen(getenv("REAL_VULKAN"), RTLD_NOW), "vkGetInstanceProcAddr");
    PFN_vkVoidFunction found = real_instance_function(instance, name);
    if (strcmp(name, "vkGetDeviceProcAddr") == 0) {
        real_device_function = (PFN_vkGetDeviceProcAddr)found;
        return ANY(device_function);
    }
    REPLACE(CreateInstance)
    REPLACE(EnumeratePhysicalDevices)
    REPLACE(EnumerateDeviceExtensionProperties)
    REPLACE(GetPhysicalDeviceProperties2)
    REPLACE(CreateDevice)
    return found;
}
