/* Memory of the device, each allocation with one buffer over it that gives it an address. */
#include "internal.h"

#include <stdlib.h>

static const VkDeviceSize address_alignment = 256;

/* ---- Kinds of memory ---- */

#define DEVICE_LOCAL VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT
#define MAPPED (VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT | VK_MEMORY_PROPERTY_HOST_COHERENT_BIT)
#define CACHED VK_MEMORY_PROPERTY_HOST_CACHED_BIT

static const struct {
    VkMemoryPropertyFlags required, preferred, avoided;
} kinds[] = {
    [HELIOS_MEMORY_DEVICE] = {DEVICE_LOCAL, 0, VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT},
    [HELIOS_MEMORY_UPLOAD] = {MAPPED, DEVICE_LOCAL, CACHED},
    [HELIOS_MEMORY_READ_BACK] = {MAPPED, CACHED, DEVICE_LOCAL},
};

/* The memory types of a kind, the best first. Types with properties beyond the four above are special and left alone. */
static uint32_t list_types(const probe *device, uint32_t kind, uint32_t allowed, uint32_t types[VK_MAX_MEMORY_TYPES]) {
    uint32_t count = 0;
    for (int score = 2; score >= 0; score--)
        for (uint32_t i = 0; i < device->memory.memoryTypeCount; i++) {
            VkMemoryPropertyFlags flags = device->memory.memoryTypes[i].propertyFlags;
            if (!(allowed & 1u << i) || (flags & kinds[kind].required) != kinds[kind].required ||
                flags & ~(VkMemoryPropertyFlags)(DEVICE_LOCAL | MAPPED | CACHED))
                continue;
            int preferred = (flags & kinds[kind].preferred) == kinds[kind].preferred;
            int avoided = (flags & kinds[kind].avoided) != 0;
            if (preferred + !avoided == score) types[count++] = i;
        }
    return count;
}

/* ---- How much there is ---- */

/* What helios_memory says; call with the lock held. */
static void ask_usage(const helios_device *device, uint64_t *budget, uint64_t *usage) {
    VkPhysicalDeviceMemoryBudgetPropertiesEXT now = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MEMORY_BUDGET_PROPERTIES_EXT,
    };
    VkPhysicalDeviceMemoryProperties2 all = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MEMORY_PROPERTIES_2,
        .pNext = device->probe.has_budget ? &now : NULL,
    };
    device->instance.GetPhysicalDeviceMemoryProperties2(device->probe.physical, &all);
    const VkMemoryHeap *heaps = all.memoryProperties.memoryHeaps;
    uint32_t largest = 0;
    VkDeviceSize size = 0;
    for (uint32_t i = 0; i < all.memoryProperties.memoryHeapCount; i++)
        if (heaps[i].flags & VK_MEMORY_HEAP_DEVICE_LOCAL_BIT && heaps[i].size > size) {
            largest = i;
            size = heaps[i].size;
        }
    *budget = device->probe.has_budget ? now.heapBudget[largest] : size;
    *usage = device->probe.has_budget ? now.heapUsage[largest] : device->heap_usage[largest];
}

EXPORT int helios_memory(helios_device *device, uint64_t *budget, uint64_t *usage) {
    pthread_mutex_lock(&device->lock);
    ask_usage(device, budget, usage);
    pthread_mutex_unlock(&device->lock);
    return HELIOS_OK;
}

/* ---- Allocation ---- */

void destroy_allocation(helios_device *device, void *object) {
    allocation *memory = object;
    device->vk.DestroyBuffer(device->handle, memory->buffer, NULL);
    device->vk.FreeMemory(device->handle, memory->memory, NULL); /* unmaps it, too */
    device->heap_usage[memory->heap] -= memory->bytes;
    free(memory);
}

/* Gives a buffer memory of the first type that has some. */
static int allocate_memory(helios_device *device, uint32_t kind, const VkMemoryRequirements *needs, allocation *memory) {
    uint32_t types[VK_MAX_MEMORY_TYPES];
    const uint32_t count = list_types(&device->probe, kind, needs->memoryTypeBits, types);
    const VkMemoryAllocateFlagsInfo flags = {
        .sType = VK_STRUCTURE_TYPE_MEMORY_ALLOCATE_FLAGS_INFO,
        .flags = VK_MEMORY_ALLOCATE_DEVICE_ADDRESS_BIT,
    };
    VkResult result = VK_ERROR_OUT_OF_DEVICE_MEMORY;
    VkDeviceSize largest = 0;
    for (uint32_t i = 0; i < count && result == VK_ERROR_OUT_OF_DEVICE_MEMORY; i++) {
        const VkMemoryAllocateInfo info = {
            .sType = VK_STRUCTURE_TYPE_MEMORY_ALLOCATE_INFO,
            .pNext = &flags,
            .allocationSize = needs->size,
            .memoryTypeIndex = types[i],
        };
        memory->heap = device->probe.memory.memoryTypes[types[i]].heapIndex;
        const VkDeviceSize size = device->probe.memory.memoryHeaps[memory->heap].size;
        if (size > largest) largest = size;
        if (needs->size > size) continue; /* Vulkan forbids to ask */
        result = device->vk.AllocateMemory(device->handle, &info, NULL, &memory->memory);
    }
    if (count == 0) return fail(HELIOS_UNSUPPORTED, "The device has no memory of kind %u.", kind);
    if (needs->size > largest)
        return fail(HELIOS_OUT_OF_DEVICE_MEMORY, "%llu bytes are more than this device has, %llu.",
                    (unsigned long long)needs->size, (unsigned long long)largest);
    if (result != VK_SUCCESS) {
        uint64_t budget, usage;
        ask_usage(device, &budget, &usage);
        return FAIL_DEVICE(device, "vkAllocateMemory", result,
                           "%.1f MiB more cannot be had; %.1f of the %.1f MiB that this process may use are in use.",
                           (double)needs->size / 0x1p20, (double)usage / 0x1p20, (double)budget / 0x1p20);
    }
    memory->bytes = needs->size;
    device->heap_usage[memory->heap] += needs->size;
    return HELIOS_OK;
}

/* A buffer of `bytes` with memory behind it; on failure nothing is left. */
static int create_allocation(helios_device *device, uint64_t bytes, uint32_t kind, allocation **made) {
    if (bytes > device->probe.properties13.maxBufferSize)
        return fail(HELIOS_OUT_OF_DEVICE_MEMORY, "%llu bytes are more than this device has in one piece, %llu.",
                    (unsigned long long)bytes, (unsigned long long)device->probe.properties13.maxBufferSize);
    allocation *memory = calloc(1, sizeof *memory);
    if (memory == NULL) return fail(HELIOS_OUT_OF_HOST_MEMORY, "There is no memory to keep track of an allocation.");
    const VkBufferCreateInfo info = {
        .sType = VK_STRUCTURE_TYPE_BUFFER_CREATE_INFO,
        .size = bytes,
        .usage = VK_BUFFER_USAGE_STORAGE_BUFFER_BIT | VK_BUFFER_USAGE_SHADER_DEVICE_ADDRESS_BIT,
    };
    int code = HELIOS_OK;
    VkResult result = device->vk.CreateBuffer(device->handle, &info, NULL, &memory->buffer);
    if (result != VK_SUCCESS)
        code = FAIL_DEVICE(device, "vkCreateBuffer", result, "a buffer of %llu bytes cannot be made.",
                           (unsigned long long)bytes);
    if (code == HELIOS_OK) {
        VkMemoryRequirements needs;
        device->vk.GetBufferMemoryRequirements(device->handle, memory->buffer, &needs);
        code = allocate_memory(device, kind, &needs, memory);
    }
    if (code == HELIOS_OK) {
        result = device->vk.BindBufferMemory(device->handle, memory->buffer, memory->memory, 0);
        if (result != VK_SUCCESS)
            code = FAIL_DEVICE(device, "vkBindBufferMemory", result, "%llu bytes cannot be used.",
                               (unsigned long long)bytes);
    }
    if (code == HELIOS_OK)
        *made = memory;
    else
        destroy_allocation(device, memory);
    return code;
}

static uint64_t buffer_address(helios_device *device, VkBuffer buffer) {
    const VkBufferDeviceAddressInfo info = {
        .sType = VK_STRUCTURE_TYPE_BUFFER_DEVICE_ADDRESS_INFO,
        .buffer = buffer,
    };
    return device->vk.GetBufferDeviceAddress(device->handle, &info);
}

/* An allocation with at least `bytes` from a multiple of 256 on. Few drivers put buffers elsewhere; then one that is larger
 * is made and its first bytes stay unused. */
static int create_aligned(helios_device *device, uint64_t bytes, uint32_t kind, allocation **made, uint64_t *address) {
    int code = create_allocation(device, bytes, kind, made);
    if (code != HELIOS_OK) return code;
    *address = buffer_address(device, (*made)->buffer);
    if (*address % address_alignment == 0) return HELIOS_OK;
    destroy_allocation(device, *made);
    code = create_allocation(device, bytes + address_alignment, kind, made);
    if (code == HELIOS_OK) *address = buffer_address(device, (*made)->buffer);
    return code;
}

static int allocate(helios_device *device, uint64_t bytes, uint32_t kind, uint64_t *id, uint64_t *device_address,
                    void **mapped) {
    allocation *made = NULL;
    uint64_t address;
    int code = check_not_lost(device);
    if (code == HELIOS_OK) code = destroy_retired(device);
    if (code == HELIOS_OK) code = create_aligned(device, bytes, kind, &made, &address);
    if (code == HELIOS_OUT_OF_DEVICE_MEMORY && device->retired_count > 0) {
        /* What was freed comes back when the device has finished with it. */
        code = wait_for(device, device->submitted, UINT64_MAX);
        if (code == HELIOS_OK) code = destroy_retired(device);
        if (code == HELIOS_OK) code = create_aligned(device, bytes, kind, &made, &address);
    }
    if (code != HELIOS_OK) return code;
    const uint64_t unused = -address % address_alignment;
    void *host = NULL;
    if (kind != HELIOS_MEMORY_DEVICE) {
        VkResult result = device->vk.MapMemory(device->handle, made->memory, 0, VK_WHOLE_SIZE, 0, &host);
        if (result != VK_SUCCESS)
            code = FAIL_DEVICE(device, "vkMapMemory", result, "%llu bytes cannot be mapped.", (unsigned long long)bytes);
    }
    if (code == HELIOS_OK) {
        *id = table_add(&device->allocations, made);
        if (*id == 0) code = fail(HELIOS_OUT_OF_HOST_MEMORY, "There is no memory to keep track of an allocation.");
    }
    if (code != HELIOS_OK) {
        destroy_allocation(device, made);
        return code;
    }
    *device_address = address + unused;
    *mapped = host ? (char *)host + unused : NULL;
    return HELIOS_OK;
}

EXPORT int helios_allocate(helios_device *device, uint64_t bytes, uint32_t kind, uint64_t *memory,
                           uint64_t *device_address, void **mapped) {
    if (bytes == 0) return fail(HELIOS_ERROR, "An allocation has at least 1 byte.");
    if (kind >= COUNT(kinds)) return fail(HELIOS_ERROR, "There is no kind of memory %u.", kind);
    pthread_mutex_lock(&device->lock);
    int code = allocate(device, bytes, kind, memory, device_address, mapped);
    pthread_mutex_unlock(&device->lock);
    return code;
}

EXPORT int helios_free(helios_device *device, uint64_t memory) {
    pthread_mutex_lock(&device->lock);
    allocation *freed = table_remove(&device->allocations, memory);
    int code = HELIOS_OK;
    if (freed == NULL)
        code = fail(HELIOS_ERROR, "There is no memory %#llx; was it freed before?", (unsigned long long)memory);
    else
        code = retire(device, freed, destroy_allocation);
    pthread_mutex_unlock(&device->lock);
    return code;
}
