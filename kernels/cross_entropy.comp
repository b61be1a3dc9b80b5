// The loss of each row of logits and, with TRAINING = 1, the gradient of the sum of the losses times `scale`:
//     losses[row] = log(sum(exp(c))) - c[target], c = logits, or with CAPPED = 1 c = cap tanh(logits / cap)
//     dlogits = scale (exp(c) / sum(exp(c)) - [column is the target]) (1 - (c / cap)^2)
// A row whose target is negative does not count: loss and gradient 0. A target that no column has gives NaN.
//
// logits [rows, stride] of which `width` columns count; targets, losses [rows]; dlogits [rows, stride], which may be
// logits. LANES threads share a row. The maximum and the sum of exponentials come from one pass, in which the sum is
// rescaled whenever the maximum grows (Milakov and Gimelshein 2018). With HELD vectors for each lane it keeps the row,
// and reads it once; otherwise it reads it twice. What is kept are the capped logits, or of more than MOST_VALUES
// vectors, which registers would not hold, what was stored. Of 16-bit logits the tanh is the device's own.
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
const uint MOST_VALUES = 8;
#define STORED JOIN(L, x4_value)

vec4 capped(vec4 logit) {
    if (CAPPED == 0) {
        return logit;
    }
    vec4 ratio = logit / soft_cap;
#if L_BITS == 16
    return soft_cap * (1.0 - 2.0 / (exp(2.0 * ratio) + 1.0));
#else
    return soft_cap * vec4(accurate_tanh(ratio.x), accurate_tanh(ratio.y), accurate_tanh(ratio.z), accurate_tanh(ratio.w));
#endif
}

STORED stored(uint index, bool whole) {
    if (VECTOR == 4 && whole) return JOIN(L, x4_buffer)(logits).at[index / 4];
    return STORED(logits.at[index]);
}

// The lane's part of the row from place `base` on. One load is as good as another where the row has ended.
void read(uint start, uint base, uint lane, uint places, out STORED held[EACH]) {
    [[unroll]] for (uint k = 0; k < EACH; ++k) {
        bool whole;
        uint column = place_start(min(base + k * LANES + lane, places - 1), uint(width), whole);
        held[k] = stored(start + column, whole);
    }
}

void main() {
    uint thread = thread_index();
    uint lane = thread % LANES;
    uint places = place_count(uint(width));
    for (uint first = gl_WorkGroupID.x * (THREADS / LANES); first < rows; first += gl_NumWorkGroups.x * (THREADS / LANES)) {
        bool live = first + thread / LANES < rows;
        uint row = min(first + thread / LANES, rows - 1);
        uint start = row * stride;
        int target = targets.at[row];
        bool counts = target >= 0;
        STORED held[EACH];
        vec4 values[EACH];
        vec2 sum = vec2(LOWEST, 0.0);
        float chosen = 0.0;
        bool has_target = lane == 0 && !(counts && target < width);  // this lane writes the loss
        for (uint base = 0; base < places; base += EACH * LANES) {
            read(start, base, lane, places, held);
            float largest = LOWEST;
            [[unroll]] for (uint k = 0; k < EACH; ++k) {
                bool whole;
                uint place = base + k * LANES + lane;
                uint column = place_start(place, uint(width), whole);
                if (place >= places) continue;
                vec4 value = capped(load(held[k]));
                values[k] = value;
                bool four = VECTOR == 4 && whole;
                largest = max(largest, four ? max(max(value.x, value.y), max(value.z, value.w)) : value.x);
                uint hit = uint(target) - column;  // wraps around where the target is no column of this place
                if (counts && hit < (four ? 4 : 1)) {
                    chosen = value[hit];
                    has_target = true;
                }
            }
            if (largest > sum.x) sum = vec2(largest, sum.y * exp(sum.x - largest));
            [[unroll]] for (uint k = 0; k < EACH; ++k) {
                bool whole;
                uint place = base + k * LANES + lane;
                place_start(place, uint(width), whole);
                if (place >= places) continue;
                vec4 exponentials = exp((EACH > MOST_VALUES ? capped(load(held[k])) : values[k]) - sum.x);
                sum.y += VECTOR == 4 && whole ? dot(exponentials, vec4(1.0)) : exponentials.x;
            }
        }
        sum = row_exponentials(sum);
        if (live && has_target) {
            float loss = target < width ? (sum.x - chosen) + accurate_log(sum.y) : uintBitsToFloat(0x7fc00000u);
            losses.at[row] = counts ? loss : 0.0;
        }
        if (TRAINING == 1 && live) {
            float factor = counts ? scale / sum.y : 0.0;
            for (uint base = 0; base < places; base += EACH * LANES) {
                if (HELD == 0) read(start, base, lane, places, held);
                [[unroll]] for (uint k = 0; k < EACH; ++k) {
                    bool whole;
                    uint place = base + k * LANES + lane;
                    uint column = place_start(place, uint(width), whole);
                    if (place >= places) continue;
                    vec4 logit = HELD == 0 || EACH > MOST_VALUES ? capped(load(held[k])) : values[k];
                    vec4 gradient = factor * exp(logit - sum.x);
                    uint hit = uint(target) - column;
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
}
