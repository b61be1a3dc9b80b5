// Sums, maxima, or sums of squares, over axes: y[chunk, k] = sum of x[k, t] over the terms t of a chunk, in an order that depends only on
// the shapes and the device.
//
// x: floating-point, strided: `kept` results, along up to two axes, times `terms`, along up to two; y: [chunks, kept],
// contiguous, a chunk being `chunk` terms. Grid: (k, chunk). With BY_WORKGROUP a workgroup makes each result, its
// invocations taking neighbouring terms; otherwise each invocation makes one, neighbours taking neighbouring results.
// numpy: sum(x, axis=1), max(x, axis=1), sum(x * x, axis=1)

#version 460
#include "common.glsl"
#include "kernel.glsl"
#include "elements.glsl"
#include "accurate.glsl"
layout(local_size_x_id = 0) in;

float combine(float x, float y) {
    if (MAXIMUM == 0) return x + y;
    return x > y || is_nan(x) ? x : y;
}

float term(uint start, uint index) {
    uint offset = start + index * term_stride0;
    if (TERM_AXES == 2) {
        uint outer = index / term_length0;
        offset = start + (index - outer * term_length0) * term_stride0 + outer * term_stride1;
    }
    float value = uintBitsToFloat(read_elements(x, offset, X_ELEMENT, false).x);
    return SQUARED != 0 ? value * value : value;
}

uint first_term(uint k) {
    if (KEPT_AXES == 1) return k * kept_stride0;
    uint outer = k / kept_length0;
    return (k - outer * kept_length0) * kept_stride0 + outer * kept_stride1;
}

// Four partial results, so that loads and additions overlap.
float reduce(uint start, uint first, uint end, uint step) {
    float nothing = MAXIMUM == 0 ? 0.0 : uintBitsToFloat(0xff800000u);
    vec4 parts = vec4(nothing);
    uint index = first;
    for (; index + 3 * step < end; index += 4 * step) {
        parts.x = combine(parts.x, term(start, index));
        parts.y = combine(parts.y, term(start, index + step));
        parts.z = combine(parts.z, term(start, index + 2 * step));
        parts.w = combine(parts.w, term(start, index + 3 * step));
    }
    for (; index < end; index += step) parts.x = combine(parts.x, term(start, index));
    return combine(combine(parts.x, parts.y), combine(parts.z, parts.w));
}

// Through shared memory rather than subgroups, whose maximum need not keep a NaN.
shared float parts[THREADS];

float over_workgroup(float value) {
    uint index = gl_LocalInvocationID.x;
    parts[index] = value;
    for (uint half_size = THREADS / 2; half_size > 0; half_size /= 2) {
        barrier();
        if (index < half_size) parts[index] = combine(parts[index], parts[index + half_size]);
    }
    barrier();
    value = parts[0];
    barrier();
    return value;
}

void main() {
    uint begin = gl_WorkGroupID.y * chunk;
    uint end = min(begin + chunk, terms);
    uint row = gl_WorkGroupID.y * kept;
    if (BY_WORKGROUP == 1) {
        for (uint k = gl_WorkGroupID.x; k < kept; k += gl_NumWorkGroups.x) {
            uint index = gl_LocalInvocationID.x;
            float value = over_workgroup(reduce(first_term(k), begin + index, end, THREADS));
            if (index == 0) write_elements(y, row + k, Y_ELEMENT, false, uvec4(floatBitsToUint(value)));
        }
    } else {
        for (uint k = gl_GlobalInvocationID.x; k < kept; k += GRID_THREADS) {
            float value = reduce(first_term(k), begin, end, 1);
            write_elements(y, row + k, Y_ELEMENT, false, uvec4(floatBitsToUint(value)));
        }
    }
}
