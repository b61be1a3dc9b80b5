// Elements whose type is a specialization constant, one or four at a time, as 32 bits each: the float32 that a
// floating-point element amounts to, or the integer. So one module serves every combination of types.

#define F32 0u
#define F16 1u
#define BF16 2u
#define I32 3u
#define U32 4u  // holds 16-bit values
#define B32 5u

bool is_floating(uint element) {
    return element <= BF16;
}

uvec4 read_elements(u32_buffer from, uint index, uint element, bool four) {
#ifdef SIXTEEN_BITS
    if (element == F16) {
        if (four) return floatBitsToUint(load(f16x4_buffer(from).at[index / 4]));
        return uvec4(floatBitsToUint(load(f16_buffer(from).at[index])));
    }
    if (element == BF16) {
        if (four) return floatBitsToUint(load(bf16x4_buffer(from).at[index / 4]));
        return uvec4(floatBitsToUint(load(bf16_buffer(from).at[index])));
    }
#endif
    if (four) return u32x4_buffer(from).at[index / 4];
    return uvec4(from.at[index]);
}

void write_elements(u32_buffer to, uint index, uint element, bool four, uvec4 bits) {
#ifdef SIXTEEN_BITS
    if (element == F16) {
        if (four) store(f16x4_buffer(to).at[index / 4], uintBitsToFloat(bits));
        else store(f16_buffer(to).at[index], uintBitsToFloat(bits.x));
        return;
    }
    if (element == BF16) {
        if (four) store(bf16x4_buffer(to).at[index / 4], uintBitsToFloat(bits));
        else store(bf16_buffer(to).at[index], uintBitsToFloat(bits.x));
        return;
    }
#endif
    if (four) u32x4_buffer(to).at[index / 4] = bits;
    else to.at[index] = bits.x;
}

vec4 as_floats(uvec4 bits, uint element) {
    if (is_floating(element)) return uintBitsToFloat(bits);
    if (element == I32) return vec4(ivec4(bits));
    return vec4(bits);
}

// What is stored for a result of float arithmetic.
uvec4 from_floats(vec4 values, uint element) {
    if (is_floating(element)) return floatBitsToUint(values);
    if (element == B32) return uvec4(notEqual(values, vec4(0.0)));
    uvec4 integers = uvec4(ivec4(values));
    return element == U32 ? integers & 0xffffu : integers;
}

// What is stored for a result of integer arithmetic.
uvec4 from_integers(ivec4 values, uint element) {
    if (is_floating(element)) return floatBitsToUint(vec4(values));
    if (element == B32) return uvec4(notEqual(values, ivec4(0)));
    return element == U32 ? uvec4(values) & 0xffffu : uvec4(values);
}
