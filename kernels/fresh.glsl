// Elements of buffers of common.glsl that another workgroup may only now have written: in a relay (RELAY, see relay.glsl)
// they are read past caches that are not kept the same between workgroups. Include where RELAY is known.
//
// What waits for numbers instead of a counter reads `awaited_` ones again while one is unwritten: all its bits are 1, which
// makes a float no number. `written` is what is stored of a number that is none.
layout(buffer_reference, std430, buffer_reference_align = 16) coherent volatile buffer awaited_f32x4_buffer { vec4 at[]; };

bool is_unwritten(vec4 values) { return any(equal(floatBitsToUint(values), uvec4(~0u))); }

vec4 written(vec4 values) {
    const uvec4 bits = floatBitsToUint(values);
    return uintBitsToFloat(mix(bits, uvec4(0x7fc00000u), greaterThan(bits & 0x7fffffffu, uvec4(0x7f800000u))));
}

#define FRESH(NAME, VALUE, BYTES)                                                                                   \
    layout(buffer_reference, std430, buffer_reference_align = BYTES) coherent buffer fresh_##NAME##_buffer { VALUE at[]; }; \
    VALUE fresh_##NAME(uint64_t from, uint index) {                                                                 \
        if (RELAY != 0) return fresh_##NAME##_buffer(from).at[index];                                               \
        return NAME##_buffer(from).at[index];                                                                       \
    }

FRESH(f32, float, 4)
FRESH(f32x2, vec2, 8)
FRESH(f32x4, vec4, 16)
FRESH(i32, int, 4)
FRESH(u32, uint, 4)
FRESH(u32x2, uvec2, 8)
FRESH(u32x4, uvec4, 16)
#ifdef SIXTEEN_BITS
FRESH(f16, float16_t, 2)
FRESH(f16x4, f16vec4, 8)
FRESH(bf16, uint16_t, 2)
FRESH(bf16x4, u16vec4, 8)
#endif
