// The loss of each row of logits and, with TRAINING = 1, the gradient of the sum of the losses times `scale`:
//     losses[row] = log(sum(exp(c))) - c[target], c = logits, or with CAPPED = 1 c = cap tanh(logits / cap)
//     dlogits = scale (exp(c) / sum(exp(c)) - [column is the target]) (1 - (c / cap)^2)
// A row whose target is negative does not count: loss and gradient 0. A target that no column has gives NaN.
//
// logits [rows, width]; targets, losses [rows]; dlogits [rows, width], which may be logits; width is a multiple of VECTOR.
// LANES threads share a row. The maximum and the sum of exponentials come from one pass, in which the sum is rescaled
// whenever the maximum grows (Milakov and Gimelshein 2018). With HELD vectors for each lane it keeps the row as it was
// stored, and reads it once; otherwise it reads it twice.
//
// numpy: e = np.exp(c - c.max(-1, keepdims=True)); total = e.sum(-1, keepdims=True)
//        losses = np.log(total)[:, 0] - (c - c.max(-1, keepdims=True))[rows, targets]
#version 460
#include "common.glsl"
#include "kernel.glsl"
layout(local_size_x_id = 0) in;
#include "lanes.glsl"
#include "vectors.glsl"
#include "accurate.glsl"

// What a lane has of a row at a time.
const uint EACH = HELD == 0 ? 4 : HELD;
#define STORED JOIN(L, x4_value)

vec4 capped(vec4 logit) {
    if (CAPPED == 0) {
        return logit;
    }
    vec4 ratio = logit / soft_cap;
    return soft_cap * vec4(accurate_tanh(ratio.x), accurate_tanh(ratio.y), accurate_tanh(ratio.z), accurate_tanh(ratio.w));
}

vec4 gradient_of(vec4 logit, float factor, float largest, float target_part) {
    vec4 gradient = factor * exp(logit - largest) - target_part;
    if (CAPPED == 1) {
        vec4 tanh_logit = logit / soft_cap;
        gradient *= 1.0 - tanh_logit * tanh_logit;
    }
    return gradient;
}

// The lane's part of the row, from place `base` on. One load is as good as another where the row has ended.
void read(uint start, uint base, uint lane, uint places, out STORED held[EACH]) {
    [[unroll]] for (uint k = 0; k < EACH; ++k) {
        uint index = start + min(base + k * LANES + lane, places - 1) * VECTOR;
        if (VECTOR == 4) held[k] = JOIN(L, x4_buffer)(logits).at[index / 4];
        else held[k] = STORED(logits.at[index]);
    }
}

// Whether a place is one of the row; of a row that is held all are but the last.
bool is_inside(uint k, uint place, uint places) {
    return (HELD != 0 && k + 1 < HELD) || place < places;
}

void main() {
    uint thread = thread_index();
    uint lane = thread % LANES;
    uint places = width / VECTOR;
    for (uint first = gl_WorkGroupID.x * (THREADS / LANES); first < rows; first += gl_NumWorkGroups.x * (THREADS / LANES)) {
        bool live = first + thread / LANES < rows;
        uint row = min(first + thread / LANES, rows - 1);
        uint start = row * width;
        int target = targets.at[row];
        bool counts = target >= 0, exists = counts && target < int(width);
        // Read before any lane overwrites it: the reductions below lie between.
        float chosen = exists ? capped(vec4(load(logits.at[start + target]))).x : 0.0;
        STORED held[EACH];
        vec2 sum = vec2(LOWEST, 0.0);
        for (uint base = 0; base < places; base += EACH * LANES) {
            read(start, base, lane, places, held);
            vec4 most = vec4(LOWEST);
            [[unroll]] for (uint k = 0; k < EACH; ++k) {
                if (is_inside(k, base + k * LANES + lane, places)) most = max(most, capped(load(held[k])));
            }
            float largest = VECTOR == 4 ? max(max(most.x, most.y), max(most.z, most.w)) : most.x;
            if (largest > sum.x) sum = vec2(largest, sum.y * exp(sum.x - largest));
            vec4 exponentials = vec4(0.0);
            [[unroll]] for (uint k = 0; k < EACH; ++k) {
                if (is_inside(k, base + k * LANES + lane, places)) exponentials += exp(capped(load(held[k])) - sum.x);
            }
            sum.y += VECTOR == 4 ? dot(exponentials, vec4(1.0)) : exponentials.x;
        }
        sum = row_exponentials(sum);
        if (live && lane == 0) {
            float loss = exists ? (sum.x - chosen) + accurate_log(sum.y) : uintBitsToFloat(0x7fc00000u);
            losses.at[row] = counts ? loss : 0.0;
        }
        if (TRAINING == 1) {
            subgroupBarrier();
            float factor = counts ? scale / sum.y : 0.0;
            for (uint base = 0; live && base < places; base += EACH * LANES) {
                if (HELD == 0) read(start, base, lane, places, held);
                [[unroll]] for (uint k = 0; k < EACH; ++k) {
                    uint place = base + k * LANES + lane;
                    vec4 gradient = gradient_of(capped(load(held[k])), factor, sum.x, 0.0);
                    if (is_inside(k, place, places)) {
                        store_T(dlogits, start + place * VECTOR, counts ? gradient : vec4(0.0));
                    }
                }
            }
            // The target's once more, by the lane that wrote it.
            if (live && exists && target / VECTOR % LANES == lane) {
                store(dlogits.at[start + target], gradient_of(vec4(chosen), factor, sum.x, scale).x);
            }
        }
    }
}
