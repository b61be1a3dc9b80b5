/* Finding the Vulkan loader at run time, instances, validation messages. */
#include "internal.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char validation_layer[] = "VK_LAYER_KHRONOS_validation";
static const size_t most_message_bytes = 1 << 20;

/* ---- The loader ---- */

static pthread_mutex_t loader_lock = PTHREAD_MUTEX_INITIALIZER;
static PFN_vkGetInstanceProcAddr get_instance_function; /* NULL until the loader is open; it is never closed */

static int open_loader(void) {
    static const char *const names[] = {"libvulkan.so.1", "libvulkan.so"};
    pthread_mutex_lock(&loader_lock);
    for (size_t i = 0; get_instance_function == NULL && i < COUNT(names); i++) {
        void *library = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
        if (library == NULL) continue;
        /* ISO C has no conversion from void * to a pointer to a function; POSIX promises that their bits agree. */
        void *symbol = dlsym(library, "vkGetInstanceProcAddr");
        memcpy(&get_instance_function, &symbol, sizeof symbol);
    }
    int found = get_instance_function != NULL;
    pthread_mutex_unlock(&loader_lock);
    if (found) return HELIOS_OK;
    return fail(HELIOS_NO_LOADER, "There is no Vulkan loader: neither libvulkan.so.1 nor libvulkan.so can be opened.");
}

#define GLOBAL_FUNCTION(name) ((PFN_vk##name)get_instance_function(NULL, "vk" #name))

/* ---- Validation messages ---- */

static VkBool32 VKAPI_PTR collect_message(VkDebugUtilsMessageSeverityFlagBitsEXT severity,
                                          VkDebugUtilsMessageTypeFlagsEXT types,
                                          const VkDebugUtilsMessengerCallbackDataEXT *data, void *context) {
    (void)types;
    message_log *log = context;
    const char *kind = severity >= VK_DEBUG_UTILS_MESSAGE_SEVERITY_ERROR_BIT_EXT ? "error: " : "warning: ";
    const char *text = data->pMessage ? data->pMessage : "(no text)";
    size_t added = strlen(kind) + strlen(text) + 1; /* with the end of the line */
    pthread_mutex_lock(&log->lock);
    if (log->length + added + 1 > log->capacity && log->length + added < most_message_bytes) {
        size_t capacity = 2 * (log->length + added + 1);
        char *larger = realloc(log->text, capacity);
        if (larger != NULL) {
            log->text = larger;
            log->capacity = capacity;
        }
    }
    if (log->length + added + 1 <= log->capacity) {
        char *line = log->text + log->length;
        snprintf(line, added + 1, "%s%s\n", kind, text);
        for (char *c = line; c < line + added - 1; c++)
            if (*c == '\n') *c = ' ';
        log->length += added;
    }
    pthread_mutex_unlock(&log->lock);
    return VK_FALSE;
}

static VkDebugUtilsMessengerCreateInfoEXT messenger_info(message_log *log) {
    return (VkDebugUtilsMessengerCreateInfoEXT){
        .sType = VK_STRUCTURE_TYPE_DEBUG_UTILS_MESSENGER_CREATE_INFO_EXT,
        .messageSeverity = VK_DEBUG_UTILS_MESSAGE_SEVERITY_WARNING_BIT_EXT | VK_DEBUG_UTILS_MESSAGE_SEVERITY_ERROR_BIT_EXT,
        .messageType = VK_DEBUG_UTILS_MESSAGE_TYPE_VALIDATION_BIT_EXT,
        .pfnUserCallback = collect_message,
        .pUserData = log,
    };
}

/* The version of Vulkan that the validation layer knows, 0 when there is none. */
static uint32_t validation_layer_version(void) {
    PFN_vkEnumerateInstanceLayerProperties enumerate = GLOBAL_FUNCTION(EnumerateInstanceLayerProperties);
    uint32_t count = 0, version = 0;
    if (enumerate == NULL || enumerate(&count, NULL) != VK_SUCCESS) return 0;
    VkLayerProperties *layers = calloc(count ? count : 1, sizeof *layers);
    if (layers != NULL && enumerate(&count, layers) >= VK_SUCCESS)
        for (uint32_t i = 0; i < count; i++)
            if (strcmp(layers[i].layerName, validation_layer) == 0) version = layers[i].specVersion;
    free(layers);
    return version;
}

/* ---- Instances ---- */

static int load_instance_functions(instance *made) {
#define LOAD(name) made->name = (PFN_vk##name)get_instance_function(made->handle, "vk" #name);
#define REQUIRE(name) \
    LOAD(name)        \
    if (made->name == NULL) return fail(HELIOS_UNSUPPORTED, "The Vulkan loader has no vk" #name "; it needs to be newer.");
    INSTANCE_FUNCTIONS(REQUIRE)
    OPTIONAL_INSTANCE_FUNCTIONS(LOAD)
#undef REQUIRE
#undef LOAD
    return HELIOS_OK;
}

static void destroy(instance *made) {
    if (made->messenger != VK_NULL_HANDLE) made->DestroyDebugUtilsMessengerEXT(made->handle, made->messenger, NULL);
    if (made->handle != NULL && made->DestroyInstance != NULL) made->DestroyInstance(made->handle, NULL);
    *made = (instance){0};
}

static int create(instance *made, message_log *log) {
    *made = (instance){0};
    PFN_vkEnumerateInstanceVersion get_version = GLOBAL_FUNCTION(EnumerateInstanceVersion);
    PFN_vkCreateInstance create_function = GLOBAL_FUNCTION(CreateInstance);
    uint32_t version = VK_API_VERSION_1_0;
    if (create_function == NULL || (get_version != NULL && get_version(&version) != VK_SUCCESS) || version < VK_API_VERSION_1_3)
        return fail(HELIOS_UNSUPPORTED, "The Vulkan loader is of version %u.%u; Helios needs 1.3 or newer.",
                    VK_API_VERSION_MAJOR(version), VK_API_VERSION_MINOR(version));
    made->validation_version = log ? validation_layer_version() : 0;
    if (log != NULL && made->validation_version == 0)
        return fail(HELIOS_UNSUPPORTED, "There is no %s; install the Vulkan validation layers, or do not ask for them.",
                    validation_layer);

    const VkApplicationInfo application = {
        .sType = VK_STRUCTURE_TYPE_APPLICATION_INFO,
        .pApplicationName = "alpha",
        .pEngineName = "helios",
        .apiVersion = VK_API_VERSION_1_3,
    };
    const VkValidationFeatureEnableEXT enabled[] = {VK_VALIDATION_FEATURE_ENABLE_SYNCHRONIZATION_VALIDATION_EXT};
    const VkValidationFeaturesEXT validation = {
        .sType = VK_STRUCTURE_TYPE_VALIDATION_FEATURES_EXT,
        .enabledValidationFeatureCount = COUNT(enabled),
        .pEnabledValidationFeatures = enabled,
    };
    VkDebugUtilsMessengerCreateInfoEXT messenger = messenger_info(log);
    messenger.pNext = &validation;
    const char *const layers[] = {validation_layer};
    const char *const extensions[] = {VK_EXT_DEBUG_UTILS_EXTENSION_NAME, VK_EXT_VALIDATION_FEATURES_EXTENSION_NAME};
    const VkInstanceCreateInfo info = {
        .sType = VK_STRUCTURE_TYPE_INSTANCE_CREATE_INFO,
        .pNext = log ? &messenger : NULL,
        .pApplicationInfo = &application,
        .enabledLayerCount = log ? COUNT(layers) : 0,
        .ppEnabledLayerNames = layers,
        .enabledExtensionCount = log ? COUNT(extensions) : 0,
        .ppEnabledExtensionNames = extensions,
    };
    VkResult result = create_function(&info, NULL, &made->handle);
    if (result == VK_ERROR_INCOMPATIBLE_DRIVER)
        return fail(HELIOS_NO_DEVICE, "There is a Vulkan loader, but no driver: vkCreateInstance returned "
                                      "VK_ERROR_INCOMPATIBLE_DRIVER.");
    if (result != VK_SUCCESS) return fail_vulkan("vkCreateInstance", result, "vulkaninfo may show more.");
    int code = load_instance_functions(made);
    if (code == HELIOS_OK && log != NULL) {
        messenger.pNext = NULL;
        result = made->CreateDebugUtilsMessengerEXT == NULL
                     ? VK_ERROR_EXTENSION_NOT_PRESENT
                     : made->CreateDebugUtilsMessengerEXT(made->handle, &messenger, NULL, &made->messenger);
        if (result != VK_SUCCESS)
            code = fail_vulkan("vkCreateDebugUtilsMessengerEXT", result, "do without validation.");
    }
    if (code != HELIOS_OK) destroy(made);
    return code;
}

/* What uses Vulkan without validation shares one instance, and it is never destroyed. With the last instance the loader
 * closes the drivers, and not every driver can be opened again and again: that of NVIDIA answers
 * VK_ERROR_INCOMPATIBLE_DRIVER to instances of a process that has made and destroyed a few dozen of them. */
static instance shared;

int create_instance(instance *made, message_log *log) {
    *made = (instance){0};
    int code = open_loader();
    if (code != HELIOS_OK) return code;
    pthread_mutex_lock(&loader_lock);
    if (shared.handle == NULL) {
        instance first;
        code = create(&first, NULL);
        if (code == HELIOS_OK) shared = first;
    }
    if (code == HELIOS_OK) *made = shared;
    pthread_mutex_unlock(&loader_lock);
    return code == HELIOS_OK && log != NULL ? create(made, log) : code;
}

void destroy_instance(instance *made) {
    if (made->handle == shared.handle)
        *made = (instance){0};
    else
        destroy(made);
}

int list_physical_devices(const instance *from, VkPhysicalDevice **devices, uint32_t *count) {
    *devices = NULL;
    VkResult result = from->EnumeratePhysicalDevices(from->handle, count, NULL);
    if (result == VK_SUCCESS && *count > 0) {
        *devices = calloc(*count, sizeof **devices);
        if (*devices == NULL) return fail(HELIOS_OUT_OF_HOST_MEMORY, "There is no memory for a list of devices.");
        result = from->EnumeratePhysicalDevices(from->handle, count, *devices);
    }
    if (result == VK_INCOMPLETE) result = VK_SUCCESS; /* one was plugged in between the two calls */
    if (result == VK_SUCCESS && *count > 0) return HELIOS_OK;
    free(*devices);
    *devices = NULL;
    if (result == VK_SUCCESS || result == VK_ERROR_INITIALIZATION_FAILED)
        return fail(HELIOS_NO_DEVICE, "There is a Vulkan loader, but no driver reports a device.");
    return fail_vulkan("vkEnumeratePhysicalDevices", result, "vulkaninfo may show more.");
}

int load_device_functions(const instance *from, VkDevice device, device_functions *functions) {
#define REQUIRE(name)                                                                     \
    functions->name = (PFN_vk##name)from->GetDeviceProcAddr(device, "vk" #name);          \
    if (functions->name == NULL) return fail(HELIOS_UNSUPPORTED, "The Vulkan driver has no vk" #name ".");
    DEVICE_FUNCTIONS(REQUIRE)
#undef REQUIRE
    return HELIOS_OK;
}
