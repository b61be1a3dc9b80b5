// The gradient of a norm for a row; see norm_backward.comp. Include after kernel.glsl, lanes.glsl, vectors.glsl and
// norm_row.glsl.

// What a lane has of a row, with everything that is read of it on its way before the first of it is used.
struct NormRow {
    vec4 x[NORM_VECTORS], dy[NORM_VECTORS];
    float center, scale;
};

// dx of the row, and what it adds to the gradients of weight and bias, nothing unless `live`. Columns beyond WIDTH are zeros
// in `row` and `weights`. All threads of the workgroup must come here together.
void gradient_of_row(
    NormRow row, vec4 weights[NORM_VECTORS], bool live, inout vec4 dweight[NORM_VECTORS], inout vec4 dbias[NORM_VECTORS],
    out vec4 dx[NORM_VECTORS]
) {
    vec4 normalized[NORM_VECTORS], dn[NORM_VECTORS];
    vec2 sums = vec2(0.0);
    [[unroll]] for (uint k = 0; k < NORM_VECTORS; ++k) {
        normalized[k] = vec4(0.0);
        dn[k] = vec4(0.0);
        if (live) {
            normalized[k] = used((row.x[k] - row.center) * row.scale);
            dn[k] = row.dy[k] * weights[k];
            dweight[k] += row.dy[k] * normalized[k];
            dbias[k] += row.dy[k];
            sums += vec2(dot(dn[k], vec4(1.0)), dot(dn[k], normalized[k]));
        }
    }
    sums = row_sums(sums) * (1.0 / float(WIDTH));
    if (CENTERED == 0) sums.x = 0.0;
    [[unroll]] for (uint k = 0; k < NORM_VECTORS; ++k) {
        // No product is rounded together with a sum that is made of it later.
        precise vec4 value = (dn[k] - sums.x - normalized[k] * sums.y) * row.scale;
        dx[k] = value;
    }
}

// dy times what it is scaled by, as if that were a kernel of its own.
vec4 scaled(vec4 dy, float factor) {
    precise vec4 value = dy * factor;
    return value;
}

// dx and what is added to it, as if that were a kernel of its own.
vec4 added(vec4 dx, vec4 addend) {
    precise vec4 value = dx + addend;
    return value;
}
