// y = (x - mean) / sqrt(mean((x - mean)^2) + epsilon) * weight + bias over each row (Ba, Kiros and Hinton 2016), or with
// CENTERED = 0 the same without mean and bias (Zhang and Sennrich 2019).
//
// x [rows, WIDTH], strided (see rows.glsl); weight, bias [WIDTH]; y [rows, WIDTH]. With SAVE = 1 it writes what the
// gradient needs: scale [rows], which is 1 / sqrt(...), and if CENTERED mean [rows].
// A row is held in registers by LANES threads, so it is read once.
//
// numpy: m = x.mean(-1, keepdims=True); s = 1 / np.sqrt(((x - m) ** 2).mean(-1, keepdims=True) + epsilon)
//        y = (x - m) * s * weight + bias
#version 460
#include "common.glsl"
#include "kernel.glsl"
#include "fresh.glsl"
#include "relay.glsl"
layout(local_size_x_id = 0) in;
#include "rows.glsl"
#include "lanes.glsl"
#include "vectors.glsl"
#include "norm_row.glsl"

// Few enough vectors for a lane to have weight and bias on their way with the row, so that memory waits once.
const bool EARLY = NORM_VECTORS <= 8;

vec4 read(uint index) {
    if (RELAY == 0) return load_T(x, index);
    if (VECTOR == 4) return load(JOIN(JOIN(fresh_, T), x4)(uint64_t(x), index / 4));
    return vec4(load(JOIN(fresh_, T)(uint64_t(x), index)), 0.0, 0.0, 0.0);
}

void main() {
    relay_wait();
    uint thread = thread_index();
    uint lane = thread % LANES;
    for (uint first = gl_WorkGroupID.x * (THREADS / LANES); first < rows; first += gl_NumWorkGroups.x * (THREADS / LANES)) {
        uint row = first + thread / LANES;
        bool live = row < rows;
        uint start = row_start(min(row, rows - 1), inner, outer_stride, inner_stride);
        vec4 values[NORM_VECTORS], weights[NORM_VECTORS], biases[NORM_VECTORS];
        [[unroll]] for (uint k = 0; k < NORM_VECTORS; ++k) {
            uint column = (k * LANES + lane) * VECTOR;
            values[k] = column < WIDTH ? read(start + column) : vec4(0.0);
            if (EARLY && column < WIDTH) {
                weights[k] = load_f32(weight, column);
                if (HAS_BIAS == 1) biases[k] = load_f32(bias, column);
            }
        }
        vec2 norm = norm_of_row(values, lane, epsilon);
        float center = norm.x, factor = norm.y;
        [[unroll]] for (uint k = 0; k < NORM_VECTORS; ++k) {
            uint column = (k * LANES + lane) * VECTOR;
            if (live && column < WIDTH) {
                vec4 result = normalized(values[k], factor, EARLY ? weights[k] : load_f32(weight, column));
                if (HAS_BIAS == 1) {
                    result = shifted(result, EARLY ? biases[k] : load_f32(bias, column));
                }
                store_R(y, row * WIDTH + column, result);
            }
        }
        if (SAVE == 1 && live && lane == 0) {
            scale.at[row] = factor;
            if (CENTERED == 1) {
                mean.at[row] = center;
            }
        }
    }
    relay_end();
}
