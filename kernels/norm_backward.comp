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

const uint COUNT = (WIDTH + LANES * VECTOR - 1) / (LANES * VECTOR);
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
    vec4 dweight[COUNT];
    vec4 dbias[COUNT];
    vec4 weights[COUNT];
    [[unroll]] for (uint k = 0; k < COUNT; ++k) {
        uint column = (k * LANES + lane) * VECTOR;
        dweight[k] = vec4(0.0);
        dbias[k] = vec4(0.0);
        weights[k] = is_inside(column) ? load_f32(weight, column) : vec4(0.0);
    }
    float dy_factor = uint64_t(first_scale) != 0 ? first_scale.at[0] * second_scale.at[0] * dy_scale : 1.0;
    for (uint start = gl_WorkGroupID.x * SLOTS; start < rows; start += gl_NumWorkGroups.x * SLOTS) {
        uint row = min(start + thread / LANES, rows - 1);
        bool live = start + thread / LANES < rows;
        uint x_start = row_start(row, x_inner, x_outer_stride, x_inner_stride);
        uint dy_start = row_start(row, dy_inner, dy_outer_stride, dy_inner_stride);
        // All that is read of a row is on its way before the first of it is used.
        vec4 x_row[COUNT], dy_row[COUNT], addend_row[COUNT];
        [[unroll]] for (uint k = 0; k < COUNT; ++k) {
            uint column = (k * LANES + lane) * VECTOR;
            x_row[k] = is_inside(column) ? load_T(x, x_start + column) : vec4(0.0);
            dy_row[k] = is_inside(column) ? load_R(dy, dy_start + column) : vec4(0.0);
            addend_row[k] = vec4(0.0);
            if (uint64_t(addend) != 0 && is_inside(column)) addend_row[k] = load_T(addend, row * WIDTH + column);
        }
        float center = CENTERED == 1 ? mean.at[row] : 0.0;
        float row_scale = scale.at[row];
        vec4 normalized[COUNT];
        vec4 dn[COUNT];
        vec2 sums = vec2(0.0);
        [[unroll]] for (uint k = 0; k < COUNT; ++k) {
            uint column = (k * LANES + lane) * VECTOR;
            normalized[k] = vec4(0.0);
            dn[k] = vec4(0.0);
            if (live && is_inside(column)) {
                // As if scaling were a kernel of its own.
                precise vec4 dy_k = dy_row[k] * dy_factor;
                normalized[k] = used((x_row[k] - center) * row_scale);
                dn[k] = dy_k * weights[k];
                dweight[k] += dy_k * normalized[k];
                dbias[k] += dy_k;
                sums += vec2(dot(dn[k], vec4(1.0)), dot(dn[k], normalized[k]));
            }
        }
        sums = row_sums(sums) * (1.0 / float(WIDTH));
        if (CENTERED == 0) {
            sums.x = 0.0;
        }
        [[unroll]] for (uint k = 0; k < COUNT; ++k) {
            uint column = (k * LANES + lane) * VECTOR;
            if (live && is_inside(column)) {
                // As if the sum were a kernel of its own: no product is rounded together with it.
                precise vec4 value = (dn[k] - sums.x - normalized[k] * sums.y) * row_scale;
                if (uint64_t(addend) != 0) value += addend_row[k];
                store_T(dx, row * WIDTH + column, value);
                if (uint64_t(rounded) != 0) store_R(rounded, row * WIDTH + column, value);
            }
        }
    }
    [[unroll]] for (uint k = 0; k < COUNT; ++k) {
        uint column = (k * LANES + lane) * VECTOR;
        store_sum(dweight[k], thread, column, 0);
        if (SUMS == 2) {
            store_sum(dbias[k], thread, column, WIDTH);
        }
    }
}
