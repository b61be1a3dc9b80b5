// The loss of each row of logits and, with TRAINING = 1, the gradient of the sum of the losses times `scale`:
//     losses[row] = log(sum(exp(c))) - c[target], c = logits, or with CAPPED = 1 c = cap tanh(logits / cap)
//     dlogits = scale (exp(c) / sum(exp(c)) - [column is the target]) (1 - (c / cap)^2)
// A row whose target is negative does not count: loss and gradient 0. A target that no column has gives NaN.
//
// logits [rows, stride] of which `width` columns count; targets, losses [rows]; dlogits [rows, stride], which may be
// logits. LANES threads share a row and read it twice: the maximum and the sum of exponentials come from one pass, in
// which the sum is rescaled whenever the maximum grows (Milakov and Gimelshein 2018).
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

#define load_L JOIN(load_, L)

vec4 capped(vec4 logit) {
    if (CAPPED == 0) {
        return logit;
    }
    vec4 ratio = logit / soft_cap;
    return soft_cap * vec4(accurate_tanh(ratio.x), accurate_tanh(ratio.y), accurate_tanh(ratio.z), accurate_tanh(ratio.w));
}

void main() {
    uint thread = thread_index();
    uint lane = thread % LANES;
    for (uint first = gl_WorkGroupID.x * (THREADS / LANES); first < rows; first += gl_NumWorkGroups.x * (THREADS / LANES)) {
        bool live = first + thread / LANES < rows;
        uint row = min(first + thread / LANES, rows - 1);
        uint start = row * stride;
        uint places = live ? place_count(uint(width)) : 0;
        int target = targets.at[row];
        bool counts = target >= 0;
        // Read before any lane overwrites it: the reductions below lie between.
        float chosen = counts && target < width ? capped(vec4(load(logits.at[start + target]))).x : 0.0;
        vec2 sum = vec2(LOWEST, 0.0);
        for (uint place = lane; place < places; place += LANES) {
            bool whole;
            uint column = place_start(place, uint(width), whole);
            vec4 value = capped(load_L(logits, start + column, whole));
            if (VECTOR == 1 || !whole) {
                sum = add_exponentials(sum, vec2(value.x, 1.0));
            } else {
                float largest = max(max(value.x, value.y), max(value.z, value.w));
                vec4 exponentials = exp(value - largest);
                sum = add_exponentials(sum, vec2(largest, dot(exponentials, vec4(1.0))));
            }
        }
        sum = row_exponentials(sum);
        if (live && lane == 0) {
            float loss = target < width ? (sum.x - chosen) + accurate_log(sum.y) : uintBitsToFloat(0x7fc00000u);
            losses.at[row] = counts ? loss : 0.0;
        }
        if (TRAINING == 1) {
            subgroupBarrier();
            float factor = counts ? scale / sum.y : 0.0;
            for (uint place = lane; place < places; place += LANES) {
                bool whole;
                uint column = place_start(place, uint(width), whole);
                vec4 logit = capped(load_L(logits, start + column, whole));
                vec4 gradient = factor * exp(logit - sum.x);
                uint hit = uint(target) - column;  // wraps around where the target is no column of this place
                if (counts && hit < 4) {
                    gradient[hit] -= scale;
                }
                if (CAPPED == 1) {
                    vec4 tanh_logit = logit / soft_cap;
                    gradient *= 1.0 - tanh_logit * tanh_logit;
                }
                store_T(dlogits, start + column, counts ? gradient : vec4(0.0), whole);
            }
        }
    }
}
