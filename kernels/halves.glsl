// Raw reads of operands, and 16-bit numbers in words. Variants with 16 bits define BFLOAT (1: they are bfloat16).

layout(buffer_reference, std430, buffer_reference_align = 4) restrict readonly buffer floats1 { float at[]; };
layout(buffer_reference, std430, buffer_reference_align = 16) restrict readonly buffer floats4 { vec4 at[]; };
layout(buffer_reference, std430, buffer_reference_align = 8) restrict readonly buffer words2 { uvec2 at[]; };
layout(buffer_reference, std430, buffer_reference_align = 16) restrict readonly buffer words4 { uvec4 at[]; };
#ifdef SIXTEEN_BITS
layout(buffer_reference, std430, buffer_reference_align = 2) restrict readonly buffer shorts1 { uint16_t at[]; };
#endif

#ifdef SIXTEEN_BITS
// Two float32 rounded to the variant's 16-bit type, to nearest, ties to even; the first in the low bits.
uint pack_halves(vec2 value) {
#if BFLOAT
    uvec2 bits = floatBitsToUint(value);
    bvec2 number = not(isnan(value));
    bits = mix(bits | 0x400000u, bits + 0x7fffu + ((bits >> 16) & 1u), number);
    return (bits.x >> 16) | (bits.y & 0xffff0000u);
#else
    return packFloat2x16(f16vec2(value));
#endif
}

vec2 unpack_halves(uint bits) {
#if BFLOAT
    return uintBitsToFloat(uvec2(bits << 16, bits & 0xffff0000u));
#else
    return unpackHalf2x16(bits);
#endif
}

uvec2 pack_halves4(vec4 value) { return uvec2(pack_halves(value.xy), pack_halves(value.zw)); }

vec4 unpack_halves4(uvec2 bits) { return vec4(unpack_halves(bits.x), unpack_halves(bits.y)); }
#endif
