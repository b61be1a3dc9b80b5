// The gradient of norm.comp, for normalized = (x - mean) * scale and dn = dy * weight:
//     dx = (dn - mean(dn) - normalized * mean(dn * normalized)) * scale, without mean(dn) if CENTERED = 0
// to which `addend` is added where there is one, and which is written to `rounded` as well where that is there;
//     dweight = sum over rows of dy * normalized;  dbias = sum over rows of dy
// dy is what is stored, times first_scale * second_scale * dy_scale where there are such numbers on the device.
//
// x, dy [rows, WIDTH], strided (see rows.glsl); weight [WIDTH]; mean, scale [rows]; dx, addend, rounded [rows, WIDTH].
// Each workgroup sums over its own rows only: parts [workgroups, SUMS * WIDTH] holds dweight and, with SUMS = 2, dbias
// behind it; column_sums.comp adds the workgroups up.
//
// numpy: n = (x - m) * s; d = dy * weight
//        dx = (d - d.mean(-1, keepdims=True) - n * (d * n).mean(-1, keepdims=True)) * s
#version 460
#include "common.glsl"
#include "kernel.glsl"
layout(local_size_x_id = 0) in;
#include "rows.glsl"
#include "lanes.glsl"
#include "vectors.glsl"
#include "norm_row.glsl"
#include "norm_gradient.glsl"

const uint SLOTS = THREADS / LANES;

shared vec4 slot_sums[THREADS];

bool is_inside(uint column) {
    return WIDTH % (LANES * VECTOR) == 0 || column < WIDTH;  // the first is known when the kernel is compiled
}

// Writes the sums over the workgroup's slots of one column (VECTOR columns) each.
void store_sum(vec4 value, uint thread, uint column, uint place) {
    barrier();
    slot_sums[thread] = value;
    barrier();
    if (thread < LANES && column < WIDTH) {
        for (uint slot = 1; slot < SLOTS; ++slot) {
            value += slot_sums[slot * LANES + thread];
        }
        store_f32(parts, gl_WorkGroupID.x * (SUMS * WIDTH) + place + column, value);
    }
}

void main() {
    uint thread = thread_index();
    uint lane = thread % LANES;
    vec4 dweight[NORM_VECTORS], dbias[NORM_VECTORS], weights[NORM_VECTORS];
    [[unroll]] for (uint k = 0; k < NORM_VECTORS; ++k) {
        uint column = (k * LANES + lane) * VECTOR;
        dweight[k] = dbias[k] = vec4(0.0);
        weights[k] = is_inside(column) ? load_f32(weight, column) : vec4(0.0);
    }
    float dy_factor = uint64_t(first_scale) != 0 ? first_scale.at[0] * second_scale.at[0] * dy_scale : 1.0;
    for (uint start = gl_WorkGroupID.x * SLOTS; start < rows; start += gl_NumWorkGroups.x * SLOTS) {
        uint place = min(start + thread / LANES, rows - 1);
        bool live = start + thread / LANES < rows;
        uint x_start = row_start(place, x_inner, x_outer_stride, x_inner_stride);
        uint dy_start = row_start(place, dy_inner, dy_outer_stride, dy_inner_stride);
        NormRow row;
        vec4 addend_row[NORM_VECTORS], dx_row[NORM_VECTORS];
        [[unroll]] for (uint k = 0; k < NORM_VECTORS; ++k) {
            uint column = (k * LANES + lane) * VECTOR;
            row.x[k] = is_inside(column) ? load_T(x, x_start + column) : vec4(0.0);
            row.dy[k] = is_inside(column) ? load_R(dy, dy_start + column) : vec4(0.0);
            addend_row[k] = vec4(0.0);
            if (uint64_t(addend) != 0 && is_inside(column)) addend_row[k] = load_T(addend, place * WIDTH + column);
        }
        row.center = CENTERED == 1 ? mean.at[place] : 0.0;
        row.scale = scale.at[place];
        [[unroll]] for (uint k = 0; k < NORM_VECTORS; ++k) row.dy[k] = scaled(row.dy[k], dy_factor);
        gradient_of_row(row, weights, live, dweight, dbias, dx_row);
        [[unroll]] for (uint k = 0; k < NORM_VECTORS; ++k) {
            uint column = (k * LANES + lane) * VECTOR;
            if (live && is_inside(column)) {
                vec4 value = uint64_t(addend) != 0 ? added(dx_row[k], addend_row[k]) : dx_row[k];
                store_T(dx, place * WIDTH + column, value);
                if (uint64_t(rounded) != 0) store_R(rounded, place * WIDTH + column, value);
            }
        }
    }
    [[unroll]] for (uint k = 0; k < NORM_VECTORS; ++k) {
        uint column = (k * LANES + lane) * VECTOR;
        store_sum(dweight[k], thread, column, 0);
        if (SUMS == 2) {
            store_sum(dbias[k], thread, column, WIDTH);
        }
    }
}
