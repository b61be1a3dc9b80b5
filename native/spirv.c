/* Looking through a SPIR-V module for what would crash a driver. This is not a validator: that is spirv-val's work at
 * build time. */
#include "internal.h"

#include <stdlib.h>
#include <string.h>

enum { /* numbers of the SPIR-V specification */
    MAGIC = 0x07230203,
    HEADER_WORDS = 5,
    OP_ENTRY_POINT = 15,
    OP_EXECUTION_MODE = 16,
    OP_CAPABILITY = 17,
    OP_CONSTANT = 43,
    OP_SPEC_CONSTANT = 50,
    OP_FUNCTION_END = 56,
    OP_DECORATE = 71,
    OP_EXECUTION_MODE_ID = 331,
    MODEL_GL_COMPUTE = 5,
    MODE_LOCAL_SIZE = 17,
    MODE_LOCAL_SIZE_ID = 38,
    DECORATION_SPEC_ID = 1,
    MOST_IDENTIFIERS = 1 << 22,
};

/* What the module says about an identifier. */
typedef struct identifier {
    uint32_t value;                /* of a constant, after specialization */
    uint32_t specialization_index; /* plus 1 */
} identifier;

/* ---- Capabilities ---- */

static int check_capability(const probe *device, uint32_t capability) {
    const VkSubgroupFeatureFlags subgroup = device->properties11.subgroupSupportedOperations;
    const struct {
        uint32_t capability;
        VkBool32 present;
        const char *name;
    } known[] = {
        {9, device->features12.shaderFloat16, "Float16"},
        {10, VK_FALSE, "Float64"},
        {22, device->features.shaderInt16, "Int16"},
        {39, device->features12.shaderInt8, "Int8"},
        {62, (subgroup & VK_SUBGROUP_FEATURE_VOTE_BIT) != 0, "GroupNonUniformVote"},
        {63, (subgroup & VK_SUBGROUP_FEATURE_ARITHMETIC_BIT) != 0, "GroupNonUniformArithmetic"},
        {64, (subgroup & VK_SUBGROUP_FEATURE_BALLOT_BIT) != 0, "GroupNonUniformBallot"},
        {65, (subgroup & VK_SUBGROUP_FEATURE_SHUFFLE_BIT) != 0, "GroupNonUniformShuffle"},
        {66, (subgroup & VK_SUBGROUP_FEATURE_SHUFFLE_RELATIVE_BIT) != 0, "GroupNonUniformShuffleRelative"},
        {67, (subgroup & VK_SUBGROUP_FEATURE_CLUSTERED_BIT) != 0, "GroupNonUniformClustered"},
        {68, (subgroup & VK_SUBGROUP_FEATURE_QUAD_BIT) != 0, "GroupNonUniformQuad"},
        {4433, device->features11.storageBuffer16BitAccess, "StorageBuffer16BitAccess"},
        {4448, device->features12.storageBuffer8BitAccess, "StorageBuffer8BitAccess"},
        {5116, device->bfloat16_features.shaderBFloat16Type, "BFloat16TypeKHR"},
        {5117, device->bfloat16_features.shaderBFloat16DotProduct, "BFloat16DotProductKHR"},
        {5118, device->bfloat16_features.shaderBFloat16CooperativeMatrix, "BFloat16CooperativeMatrixKHR"},
        {5346, device->features12.vulkanMemoryModelDeviceScope, "VulkanMemoryModelDeviceScope"},
        {5430, device->workgroup_matrix_features.cooperativeMatrixReductions, "CooperativeMatrixReductionsNV"},
        {5431, device->workgroup_matrix_features.cooperativeMatrixConversions, "CooperativeMatrixConversionsNV"},
        {5432, device->workgroup_matrix_features.cooperativeMatrixPerElementOperations,
         "CooperativeMatrixPerElementOperationsNV"},
        {5433, device->workgroup_matrix_features.cooperativeMatrixTensorAddressing,
         "CooperativeMatrixTensorAddressingNV"},
        {5434, device->workgroup_matrix_features.cooperativeMatrixBlockLoads, "CooperativeMatrixBlockLoadsNV"},
        {5439, device->workgroup_matrix_features.cooperativeMatrixTensorAddressing, "TensorAddressingNV"},
        {6022, device->matrix_features.cooperativeMatrix, "CooperativeMatrixKHR"},
    };
    for (size_t i = 0; i < COUNT(known); i++)
        if (known[i].capability == capability && !known[i].present)
            return fail(HELIOS_UNSUPPORTED, "The kernel needs %s, which %s does not have; choose another variant of it.",
                        known[i].name, device->properties.deviceName);
    return HELIOS_OK;
}

/* ---- Workgroup size ---- */

static int check_local_size(const probe *device, const uint32_t size[3]) {
    const VkPhysicalDeviceLimits *limits = &device->properties.limits;
    uint64_t invocations = 1;
    for (int i = 0; i < 3; i++) {
        if (size[i] == 0 || size[i] > limits->maxComputeWorkGroupSize[i])
            return fail(HELIOS_UNSUPPORTED, "A workgroup of %u x %u x %u invocations is not within the limits of %s.",
                        size[0], size[1], size[2], device->properties.deviceName);
        invocations *= size[i];
    }
    if (invocations > limits->maxComputeWorkGroupInvocations)
        return fail(HELIOS_UNSUPPORTED, "A workgroup of %u x %u x %u is more than the %u invocations of %s.", size[0],
                    size[1], size[2], limits->maxComputeWorkGroupInvocations, device->properties.deviceName);
    return HELIOS_OK;
}

static int local_size_from_identifiers(const uint32_t *at, const identifier *identifiers, uint32_t bound,
                                       uint32_t size[3]) {
    for (int i = 0; i < 3; i++) {
        if (at[3 + i] >= bound) return fail(HELIOS_ERROR, "The SPIR-V module is damaged: an identifier is out of bounds.");
        size[i] = identifiers[at[3 + i]].value;
    }
    return HELIOS_OK;
}

/* ---- The walk ---- */

/* Takes one instruction of `length` words; constants come after decorations, as the specification says. */
static int learn_constant(const uint32_t *at, uint32_t length, identifier *identifiers, uint32_t bound,
                          const uint32_t *constants, uint32_t constant_count) {
    const uint32_t operation = at[0] & 0xffff;
    if (operation == OP_DECORATE && length == 4 && at[2] == DECORATION_SPEC_ID) {
        if (at[1] >= bound) return fail(HELIOS_ERROR, "The SPIR-V module is damaged: an identifier is out of bounds.");
        for (uint32_t i = 0; i < constant_count; i++)
            if (constants[2 * i] == at[3]) identifiers[at[1]].specialization_index = i + 1;
    }
    if ((operation == OP_CONSTANT || operation == OP_SPEC_CONSTANT) && length >= 4) {
        if (at[2] >= bound) return fail(HELIOS_ERROR, "The SPIR-V module is damaged: an identifier is out of bounds.");
        identifier *known = &identifiers[at[2]];
        known->value = known->specialization_index ? constants[2 * (known->specialization_index - 1) + 1] : at[3];
    }
    return HELIOS_OK;
}

static int walk(const probe *device, const uint32_t *words, uint64_t count, const uint32_t *constants,
                uint32_t constant_count, identifier *identifiers) {
    const uint32_t bound = words[3];
    const uint32_t *size_mode = NULL;
    uint32_t last = 0;
    int has_main = 0, code = HELIOS_OK;
    for (uint64_t i = HEADER_WORDS; i < count && code == HELIOS_OK;) {
        const uint32_t *at = words + i;
        const uint32_t operation = at[0] & 0xffff, length = at[0] >> 16;
        if (length == 0 || length > count - i)
            return fail(HELIOS_ERROR, "The SPIR-V module is damaged: its instructions do not fit its size.");
        if (operation == OP_CAPABILITY && length == 2) code = check_capability(device, at[1]);
        if (operation == OP_ENTRY_POINT && length >= 5)
            has_main |= at[1] == MODEL_GL_COMPUTE && memcmp(at + 3, "main\0\0\0", 8) == 0;
        if ((operation == OP_EXECUTION_MODE && length == 6 && at[2] == MODE_LOCAL_SIZE) ||
            (operation == OP_EXECUTION_MODE_ID && length == 6 && at[2] == MODE_LOCAL_SIZE_ID))
            size_mode = at;
        if (code == HELIOS_OK) code = learn_constant(at, length, identifiers, bound, constants, constant_count);
        last = operation;
        i += length;
    }
    if (code != HELIOS_OK) return code;
    if (last != OP_FUNCTION_END) return fail(HELIOS_ERROR, "The SPIR-V module is damaged: its end is missing.");
    if (!has_main) return fail(HELIOS_ERROR, "The SPIR-V module has no compute kernel with the name main.");
    if (size_mode == NULL) return HELIOS_OK;
    uint32_t size[3] = {size_mode[3], size_mode[4], size_mode[5]};
    if ((size_mode[0] & 0xffff) == OP_EXECUTION_MODE_ID) {
        code = local_size_from_identifiers(size_mode, identifiers, bound, size);
        if (code != HELIOS_OK) return code;
    }
    return check_local_size(device, size);
}

int check_spirv(const probe *device, const uint32_t *words, uint64_t count, const uint32_t *constants,
                uint32_t constant_count) {
    if (count <= HEADER_WORDS || words[0] != MAGIC || words[3] == 0 || words[3] > MOST_IDENTIFIERS)
        return fail(HELIOS_ERROR, "This is not a SPIR-V module.");
    identifier *identifiers = calloc(words[3], sizeof *identifiers);
    if (identifiers == NULL) return fail(HELIOS_OUT_OF_HOST_MEMORY, "There is no memory to look at a SPIR-V module.");
    int code = walk(device, words, count, constants, constant_count, identifiers);
    free(identifiers);
    return code;
}
