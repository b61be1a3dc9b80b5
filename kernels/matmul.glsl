// What the kernels of matrix products share: raw reads of operands, tiles in an order that suits the cache, and the
// epilogue that turns a sum into results. Included after kernel.glsl, whose push constants it reads:
//   bias, residual, c, slope, columns
// Variants define C_BITS and S_BITS (32 or 16: storage of c and slope) and BFLOAT (1: 16-bit values are bfloat16).

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

// The tile of C that a workgroup computes. Bands of eight tile rows are walked column by column, so that workgroups
// that run at the same time read the same parts of A and B.
uvec2 tile_of_workgroup() {
    const uint BAND = 8;
    uint tile_rows = gl_NumWorkGroups.y, tile_columns = gl_NumWorkGroups.x;
    uint index = gl_WorkGroupID.y * tile_columns + gl_WorkGroupID.x;
    uint band = index / (BAND * tile_columns), within = index % (BAND * tile_columns);
    uint height = min(BAND, tile_rows - band * BAND);
    return uvec2(within / height, band * BAND + within % height);
}

// --- activations, with their derivatives (backend.Backend._activate) ---

float safe_tanh(float x) { return 1.0 - 2.0 / (exp(2.0 * x) + 1.0); }

// Abramowitz and Stegun 7.1.26: absolute error below 1.5e-7.
float error_function(float x) {
    float t = 1.0 / (1.0 + 0.3275911 * abs(x));
    float polynomial =
        t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))));
    return sign(x) * (1.0 - polynomial * exp(-x * x));
}

float activate(float x, out float derivative) {
    switch (ACTIVATION) {
    case 1: {  // gelu, Hendrycks and Gimpel's tanh form
        const float SCALE = 0.7978845608028654, CUBIC = 0.044715;
        float square = x * x;
        float tanh_inner = safe_tanh(SCALE * x * (1.0 + CUBIC * square));
        float half_sum = 0.5 + 0.5 * tanh_inner;
        derivative = half_sum + 0.5 * x * (1.0 - tanh_inner * tanh_inner) * SCALE * (1.0 + 3.0 * CUBIC * square);
        return x * half_sum;
    }
    case 2: {  // gelu_exact
        float half_sum = 0.5 + 0.5 * error_function(0.7071067811865476 * x);
        derivative = half_sum + x * 0.3989422804014327 * exp(-0.5 * x * x);
        return x * half_sum;
    }
    case 3:  // relu
        derivative = x > 0.0 ? 1.0 : 0.0;
        return x * derivative;
    case 4: {  // relu2
        float rectified = max(x, 0.0);
        derivative = 2.0 * rectified;
        return rectified * rectified;
    }
    case 5: {  // silu
        float sigmoid = 1.0 / (1.0 + exp(-x));
        float y = x * sigmoid;
        derivative = sigmoid + y * (1.0 - sigmoid);
        return y;
    }
    }
    derivative = 1.0;
    return x;
}

// --- epilogue: c = activation(scale sum + bias) + residual, slope = activation's derivative ---

void store_one(uint64_t index, uint column, float value) {
    if (HAS_BIAS != 0) value += floats1(uint64_t(bias)).at[column];
    float derivative;
    value = activate(value, derivative);
    if (HAS_RESIDUAL != 0) value += f32_buffer(uint64_t(residual) + 4 * index).at[0];
#if C_BITS == 32
    f32_buffer(uint64_t(c) + 4 * index).at[0] = value;
#else
    bf16_buffer(uint64_t(c) + 2 * index).at[0] = uint16_t(pack_halves(vec2(value, 0.0)));
#endif
    if (HAS_SLOPE != 0) {
#if S_BITS == 32
        f32_buffer(uint64_t(slope) + 4 * index).at[0] = derivative;
#else
        bf16_buffer(uint64_t(slope) + 2 * index).at[0] = uint16_t(pack_halves(vec2(derivative, 0.0)));
#endif
    }
}

// Four neighbours of one row; `index` is the position of the first in c, residual and slope.
void store_results(uint64_t index, uint column, vec4 value) {
    if (C_VECTOR == 0) {
        for (uint i = 0; i < 4 && column + i < columns; i++) store_one(index + i, column + i, value[i]);
        return;
    }
    if (HAS_BIAS != 0) value += floats4(uint64_t(bias)).at[column / 4];
    vec4 derivative = vec4(1.0);
    if (ACTIVATION != 0) {
        for (uint i = 0; i < 4; i++) {
            float each;
            value[i] = activate(value[i], each);
            derivative[i] = each;
        }
    }
    if (HAS_RESIDUAL != 0) value += f32x4_buffer(uint64_t(residual) + 4 * index).at[0];
#if C_BITS == 32
    f32x4_buffer(uint64_t(c) + 4 * index).at[0] = value;
#else
    u32x2_buffer(uint64_t(c) + 2 * index).at[0] = pack_halves4(value);
#endif
    if (HAS_SLOPE != 0) {
#if S_BITS == 32
        f32x4_buffer(uint64_t(slope) + 4 * index).at[0] = derivative;
#else
        u32x2_buffer(uint64_t(slope) + 2 * index).at[0] = pack_halves4(derivative);
#endif
    }
}
