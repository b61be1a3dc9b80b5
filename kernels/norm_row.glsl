// The norm of a row, with the same bits wherever it is computed; see norm.comp. Include after kernel.glsl, lanes.glsl and
// vectors.glsl; expects the specialization constants WIDTH, LANES, VECTOR and CENTERED.

const uint NORM_VECTORS = (WIDTH + LANES * VECTOR - 1) / (LANES * VECTOR);  // of a row that a lane has

// The row's mean, or 0 unless CENTERED, and 1 / sqrt(variance + epsilon); `values` are the lane's vectors of it, and
// become what they are without the mean. All threads of the workgroup must come here together.
vec2 norm_of_row(inout vec4 values[NORM_VECTORS], uint lane, float epsilon) {
    precise float sum = 0.0;
    [[unroll]] for (uint k = 0; k < NORM_VECTORS; ++k) sum += dot(values[k], vec4(1.0));
    float center = 0.0;
    if (CENTERED == 1) center = row_sum(sum) * (1.0 / float(WIDTH));
    precise float squares = 0.0;
    [[unroll]] for (uint k = 0; k < NORM_VECTORS; ++k) {
        uint column = (k * LANES + lane) * VECTOR;
        values[k] -= center;
        vec4 inside = column < WIDTH ? used(values[k]) : vec4(0.0);
        squares += dot(inside, inside);
    }
    return vec2(center, 1.0 / sqrt(row_sum(squares) * (1.0 / float(WIDTH)) + epsilon));
}

// Numbers of a row without its mean, scaled, times the weight; the bias, if there is one, is added by `shifted`.
vec4 normalized(vec4 centered, float factor, vec4 weight) {
    precise vec4 result = centered * factor * weight;
    return result;
}

vec4 shifted(vec4 value, vec4 bias) {
    precise vec4 result = value + bias;
    return result;
}
