// A float32 matrix in two pieces of float16, row by row, see pieces.glsl.
//
// x [rows, columns], less than 2^31 elements; parts [part_count], as largest_magnitude.comp makes them;
// y [rows, 2, columns]; exponent [1]
// numpy: exponent = max(floor(log2(max(abs(x)))) - 14, -126); scaled = x / 2 ** exponent; y[:, 0] = f16(scaled);
//        y[:, 1] = f16(2048 * (scaled - y[:, 0]))
#version 460
#include "common.glsl"
#include "kernel.glsl"
#include "pieces.glsl"
#include "accurate.glsl"
layout(local_size_x_id = 0) in;

// What is left of numbers by the bits of float16 nearest to them: compilers take a conversion and its reverse for
// nothing, so the reverse is made of the bits. What is infinite or no number stays so.
float left_by(float value, uint bits) {
    const uint magnitude = (bits & 0x7fffu) << 13;
    const float smallest_normal = power_of_two(-14);
    const float size = magnitude < 1u << 23 ? uintBitsToFloat(magnitude + (113u << 23)) - smallest_normal
                                            : uintBitsToFloat(magnitude + (112u << 23));
    return value - ((bits & 0x8000u) != 0 ? -size : size);
}

// Two neighbours in either piece.
uvec2 pieces_of(vec2 scaled) {
    const uint first = packFloat2x16(f16vec2(scaled));
    const vec2 left = vec2(left_by(scaled.x, first), left_by(scaled.y, first >> 16));
    return uvec2(first, packFloat2x16(f16vec2(LIFT * left)));
}

void main() {
    uint largest = 0;
    for (uint i = gl_LocalInvocationIndex; i < part_count; i += THREADS) largest = max(largest, parts.at[i]);
    const int its_exponent = exponent_of(floatBitsToUint(workgroup_max(uintBitsToFloat(largest))));
    if (gl_GlobalInvocationID.x == 0) exponent.at[0] = its_exponent;
    const float factor = power_of_two(-its_exponent);
    const uint width = columns / VECTOR;
    for (uint unit = gl_GlobalInvocationID.x; unit < rows * width; unit += GRID_THREADS) {
        const uint place = unit + unit / width * width;  // of piece 0
        if (VECTOR == 4) {
            const vec4 scaled = factor * f32x4_buffer(x).at[unit];
            const uvec2 low = pieces_of(scaled.xy), high = pieces_of(scaled.zw);
            u32x2_buffer(y).at[place] = uvec2(low.x, high.x);
            u32x2_buffer(y).at[place + width] = uvec2(low.y, high.y);
        } else {
            const uvec2 pieces = pieces_of(vec2(factor * x.at[unit], 0.0));
            bf16_buffer(y).at[place] = uint16_t(pieces.x);
            bf16_buffer(y).at[place + width] = uint16_t(pieces.y);
        }
    }
}
