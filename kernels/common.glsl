// What every kernel includes first: extensions, buffers by element type, loading and storing as float, sums and maxima
// over a workgroup. Knows nothing about any one operation.
//
// A kernel templated over the element type T (-DT=f16) names its buffers JOIN(T, _buffer), or declares them in the
// manifest ("in T x"), and reads and writes them as float or vec4 whatever T is:
//
//     float value = load(x.at[i]);            vec4 values = load(JOIN(T, x4_buffer)(x).at[i]);
//     store(y.at[i], value);                  store(JOIN(T, x4_buffer)(y).at[i], values);
//
// Element types: f32, f16, bf16 (the high half of a float32, stored as a 16-bit integer, rounded to nearest even), i32,
// u32, b32 (a boolean, 0 or 1); with x2, x4 for vectors. f16 and bf16 exist in variants that require "float16".

#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_buffer_reference : require
#extension GL_EXT_buffer_reference2 : require
#extension GL_EXT_shader_explicit_arithmetic_types_int64 : require
#extension GL_EXT_control_flow_attributes : require
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_KHR_shader_subgroup_arithmetic : require
#extension GL_KHR_shader_subgroup_ballot : require
#extension GL_KHR_shader_subgroup_shuffle : require
#if defined(REQUIRES_FLOAT16) || defined(REQUIRES_COOPERATIVE_MATRIX_F16) || defined(REQUIRES_WORKGROUP_MATRIX_F16) || \
    defined(REQUIRES_BFLOAT16) || defined(REQUIRES_COOPERATIVE_MATRIX_BF16)
#define SIXTEEN_BITS
#extension GL_EXT_shader_16bit_storage : require
#extension GL_EXT_shader_explicit_arithmetic_types_float16 : require
#extension GL_EXT_shader_explicit_arithmetic_types_int16 : require
#endif
#if defined(REQUIRES_BFLOAT16) || defined(REQUIRES_COOPERATIVE_MATRIX_BF16)
#extension GL_EXT_bfloat16 : require
#endif
#if defined(REQUIRES_COOPERATIVE_MATRIX_F16) || defined(REQUIRES_COOPERATIVE_MATRIX_BF16) || \
    defined(REQUIRES_WORKGROUP_MATRIX_F16)
#extension GL_KHR_memory_scope_semantics : require
#extension GL_KHR_cooperative_matrix : require
#endif
#if defined(REQUIRES_WORKGROUP_MATRIX_F16) || defined(REQUIRES_COOPERATIVE_MATRIX_2)
#extension GL_NV_cooperative_matrix2 : require
#endif

#define JOIN_EXPANDED(a, b) a##b
#define JOIN(a, b) JOIN_EXPANDED(a, b)

// --- buffers: NAME_buffer has elements at[], and NAME_value is the type of one -----------------------------------------

#define BUFFER(NAME, VALUE, BYTES) \
    layout(buffer_reference, std430, buffer_reference_align = BYTES) buffer NAME##_buffer { VALUE at[]; };

#define f32_value float
#define i32_value int
#define u32_value uint
#define b32_value uint
#define f32x4_value vec4
#define u32x4_value uvec4

BUFFER(f32, float, 4)
BUFFER(f32x2, vec2, 8)
BUFFER(f32x4, vec4, 16)
BUFFER(i32, int, 4)
BUFFER(i32x2, ivec2, 8)
BUFFER(i32x4, ivec4, 16)
BUFFER(u32, uint, 4)
BUFFER(u32x2, uvec2, 8)
BUFFER(u32x4, uvec4, 16)
BUFFER(b32, uint, 4)
BUFFER(b32x2, uvec2, 8)
BUFFER(b32x4, uvec4, 16)

float load(float value) { return value; }
vec2 load(vec2 value) { return value; }
vec4 load(vec4 value) { return value; }
void store(out float target, float value) { target = value; }
void store(out vec2 target, vec2 value) { target = value; }
void store(out vec4 target, vec4 value) { target = value; }

#ifdef SIXTEEN_BITS
#define f16_value float16_t
#define bf16_value uint16_t
#define f16x4_value f16vec4
#define bf16x4_value u16vec4

BUFFER(f16, float16_t, 2)
BUFFER(f16x2, f16vec2, 4)
BUFFER(f16x4, f16vec4, 8)
BUFFER(bf16, uint16_t, 2)
BUFFER(bf16x2, u16vec2, 4)
BUFFER(bf16x4, u16vec4, 8)

float load(float16_t value) { return float(value); }
vec2 load(f16vec2 value) { return vec2(value); }
vec4 load(f16vec4 value) { return vec4(value); }
void store(out float16_t target, float value) { target = float16_t(value); }
void store(out f16vec2 target, vec2 value) { target = f16vec2(value); }
void store(out f16vec4 target, vec4 value) { target = f16vec4(value); }

// The bits of bfloat16 numbers nearest to `value`, ties to even; a NaN stays one.
uint bfloat16_bits(float value) {
    uint bits = floatBitsToUint(value);
    bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
    return is_nan ? (bits >> 16) | 0x40u : (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
}

float load(uint16_t value) { return uintBitsToFloat(uint(value) << 16); }
vec2 load(u16vec2 value) { return uintBitsToFloat(uvec2(value) << 16); }
vec4 load(u16vec4 value) { return uintBitsToFloat(uvec4(value) << 16); }
void store(out uint16_t target, float value) { target = uint16_t(bfloat16_bits(value)); }
void store(out u16vec2 target, vec2 value) {
    target = u16vec2(bfloat16_bits(value.x), bfloat16_bits(value.y));
}
void store(out u16vec4 target, vec4 value) {
    target = u16vec4(bfloat16_bits(value.x), bfloat16_bits(value.y), bfloat16_bits(value.z), bfloat16_bits(value.w));
}
#endif

// --- reductions over a workgroup of one dimension: every invocation must call them, and every one gets the result --------
// The order of summation depends on nothing but the device's subgroup size. At most 256 subgroups.

shared float reduction_parts[256];
shared vec2 reduction_pairs[256];

#define WORKGROUP_REDUCTION(TYPE, PARTS, NAME, SUBGROUP_OPERATION, OPERATION)           \
    TYPE NAME(TYPE value) {                                                             \
        value = SUBGROUP_OPERATION(value);                                              \
        if (gl_NumSubgroups == 1u) return value;                                        \
        barrier(); /* an earlier reduction may still be read */                         \
        if (subgroupElect()) PARTS[gl_SubgroupID] = value;                              \
        barrier();                                                                      \
        value = PARTS[0];                                                               \
        for (uint i = 1; i < gl_NumSubgroups; ++i) value = OPERATION(value, PARTS[i]);  \
        return value;                                                                   \
    }

#define PLUS(a, b) ((a) + (b))

WORKGROUP_REDUCTION(float, reduction_parts, workgroup_sum, subgroupAdd, PLUS)
WORKGROUP_REDUCTION(float, reduction_parts, workgroup_max, subgroupMax, max)
// Two sums at the price of one barrier pair.
WORKGROUP_REDUCTION(vec2, reduction_pairs, workgroup_sum, subgroupAdd, PLUS)

// --- grids: at most 65535 workgroups along an axis, so a kernel's loop strides over the whole grid ------------------------

#define GRID_THREADS (gl_NumWorkGroups.x * gl_WorkGroupSize.x)

// --- random bits: Philox4x32-10 (Salmon et al., SC 2011), the same words as alpha/rng.py ----------------------------------

uvec4 philox(uvec4 counter, uvec2 key) {
    for (uint round = 0; round < 10; ++round) {
        uint high0, low0, high1, low1;
        umulExtended(0xD2511F53u, counter.x, high0, low0);
        umulExtended(0xCD9E8D57u, counter.z, high1, low1);
        counter = uvec4(high1 ^ counter.y ^ key.x, low1, high0 ^ counter.w ^ key.y, low0);
        key += uvec2(0x9E3779B9u, 0xBB67AE85u);
    }
    return counter;
}

// Word `index` % 4 of block `index` / 4 is element `index` of rng.random_bits; here are the four words of one block.
uvec4 random_block(uint block, uint stream, uint step, uvec2 seed) { return philox(uvec4(block, 0u, stream, step), seed); }
