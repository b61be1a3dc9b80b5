// Buffers as those of common.glsl, read past caches that are not kept the same between workgroups.
#define FRESH_BUFFER(NAME, VALUE, BYTES) \
    layout(buffer_reference, std430, buffer_reference_align = BYTES) coherent buffer fresh_##NAME { VALUE at[]; };

FRESH_BUFFER(f32, float, 4)
FRESH_BUFFER(f32x2, vec2, 8)
FRESH_BUFFER(f32x4, vec4, 16)
FRESH_BUFFER(i32, int, 4)
FRESH_BUFFER(u32, uint, 4)
FRESH_BUFFER(u32x2, uvec2, 8)
FRESH_BUFFER(u32x4, uvec4, 16)
#ifdef SIXTEEN_BITS
FRESH_BUFFER(f16, float16_t, 2)
FRESH_BUFFER(f16x4, f16vec4, 8)
FRESH_BUFFER(bf16, uint16_t, 2)
FRESH_BUFFER(bf16x4, u16vec4, 8)
#endif
