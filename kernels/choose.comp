// A column of each row of logits, drawn with a random number: one row to a workgroup.
//
// logits [N, width]; options [N, 4]: temperature, top_p, min_p and the number, from 0 to 1; top_k, ids [N]. See
// `Backend.choose`. A column that is kept has the weight exp((logit - largest) / temperature). How likely a column must be
// is found from keys, numbers that have the order of the logits: the largest key from which on the columns are enough, bit
// by bit. Of equal logits the first ones are kept. -1 where a logit is not finite. numpy: choice.choose, row by row.

#version 460
#include "common.glsl"
#include "kernel.glsl"
#include "accurate.glsl"
layout(local_size_x_id = 0) in;

shared float sums[THREADS];  // of each thread's columns, which are neighbours

// A number that is larger for a larger float.
uint key_of(float value) {
    uint bits = floatBitsToUint(value == 0.0 ? 0.0 : value);  // -0 is 0
    return (bits & 0x80000000u) != 0u ? ~bits : bits | 0x80000000u;
}

// Sums of fewer than 2^24 ones are exact.
uint workgroup_count(uint count) { return uint(workgroup_sum(float(count))); }

// The sum of the values of the threads before this one, and of all.
vec2 sums_before(float value) {
    barrier();
    sums[gl_LocalInvocationIndex] = value;
    barrier();
    float total = 0.0, before = 0.0;
    for (uint i = 0; i < THREADS; ++i) {
        if (i == gl_LocalInvocationIndex) before = total;
        total += sums[i];
    }
    return vec2(before, total);
}

void main() {
    const uint thread = gl_LocalInvocationIndex, row = gl_WorkGroupID.x, start = row * width;
    const float temperature = options.at[row * 4], top_p = options.at[row * 4 + 1], min_p = options.at[row * 4 + 2];
    const uint top = top_k.at[row] > 0 ? min(uint(top_k.at[row]), width) : width;

    uint spoiled = 0u;
    float largest = uintBitsToFloat(0xff800000u);
    for (uint i = thread; i < width; i += THREADS) {
        float value = logits.at[start + i];
        spoiled += is_finite(value) ? 0u : 1u;
        largest = max(largest, value);
    }
    if (workgroup_count(spoiled) != 0u) {
        if (thread == 0) ids.at[row] = -1;
        return;
    }
    largest = workgroup_max(largest);
#define LOGIT(i) logits.at[start + (i)]
#define WEIGHT(value) (temperature == 0.0 ? 1.0 : accurate_exp(((value) - largest) / temperature))

    // Kept are the columns above the key `least`, and the first `ties` of those at it.
    uint least = 0u, ties = width;
    if (temperature == 0.0) {
        least = key_of(largest);
        ties = 1u;
    } else if (top < width) {
        for (uint bit = 0x80000000u; bit != 0u; bit >>= 1) {
            uint count = 0u;
            for (uint i = thread; i < width; i += THREADS) count += uint(key_of(LOGIT(i)) >= (least | bit));
            if (workgroup_count(count) >= top) least |= bit;
        }
        uint above = 0u;
        for (uint i = thread; i < width; i += THREADS) above += uint(key_of(LOGIT(i)) > least);
        ties = top - workgroup_count(above);
    }
    if (temperature != 0.0 && top_p < 1.0) {
        float wanted = 0.0;
        uint border = 0u;
        for (uint bit = 0u;; bit = bit == 0u ? 0x80000000u : bit >> 1) {  // first, with no bit, all that is kept
            const uint attempt = border | bit;
            if (bit != 0u && attempt <= least) {
                border = attempt;
            } else {
                float weight = 0.0, tie = 0.0;
                uint equal = 0u;
                for (uint i = thread; i < width; i += THREADS) {
                    const float value = LOGIT(i);
                    const uint key = key_of(value);
                    if (key >= attempt && key > least) weight += WEIGHT(value);
                    if (bit == 0u && key == least) {
                        tie = WEIGHT(value);
                        equal++;
                    }
                }
                weight = workgroup_sum(weight);
                if (bit == 0u) {
                    wanted = top_p * (weight + workgroup_max(tie) * float(min(ties, workgroup_count(equal))));
                } else if (weight >= wanted && weight > 0.0) {  // one at least
                    border = attempt;
                }
            }
            if (bit == 1u) break;
        }
        float above = 0.0, tie = 0.0;
        for (uint i = thread; i < width; i += THREADS) {
            const float value = LOGIT(i);
            const uint key = key_of(value);
            if (key > border) above += WEIGHT(value);
            if (key == border) tie = WEIGHT(value);
        }
        above = workgroup_sum(above);
        tie = workgroup_max(tie);
        const float needed = tie > 0.0 ? max(1.0, ceil((wanted - above) / tie)) : 1.0;
        ties = min(border == least ? ties : width, uint(min(needed, float(width))));
        least = border;
    }

    const uint share = (width + THREADS - 1) / THREADS;
    const uint first = min(width, thread * share), last = min(width, first + share);
    uint equal = 0u;
    for (uint i = first; i < last; ++i) equal += uint(key_of(LOGIT(i)) == least);
    const uint left = uint(max(0.0, float(ties) - sums_before(float(equal)).x));
    // Twice the same loop: first the sum of this thread's weights, then the column at which the sum of all passes the draw.
    vec2 around = vec2(0.0);
    float target = 0.0;
    for (uint pass = 0; pass < 2; ++pass) {
        float sum = 0.0;
        uint rest = left, found = width;
        bool is_passed = false;
        for (uint i = first; i < last && !is_passed; ++i) {
            const float value = LOGIT(i);
            const uint key = key_of(value);
            bool is_kept = key > least;
            if (key == least && rest > 0u) {
                is_kept = true;
                --rest;
            }
            const float weight = WEIGHT(value);
            if (is_kept && weight >= min_p && weight > 0.0) {
                sum += weight;
                found = i;
                is_passed = pass == 1u && around.x + sum > target;
            }
        }
        if (pass == 0u) {
            around = sums_before(sum);
            target = options.at[row * 4 + 3] * around.y;
        } else if (found < width) {
            // Rounding may leave the draw at the end of all, or at that of the range in which it is.
            const float after = around.x + sums[thread];
            if (around.x <= target && (target < after || after == around.y)) ids.at[row] = int(found);
        }
    }
}
