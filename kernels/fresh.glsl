// Elements of buffers of common.glsl that another workgroup may only now have written: in a relay (RELAY, see relay.glsl)
// they are read past caches that are not kept the same between workgroups. Include where RELAY is known.
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
