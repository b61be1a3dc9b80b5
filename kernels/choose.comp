// A column of each row of logits, drawn with a random number: one row to a workgroup.
//
// logits [N, width], in a relay (relay.glsl) of the round before; options [N, 4]: temperature, top_p, min_p and the number,
// from 0 to 1; top_k, ids [N]. See `Backend.choose`. A column that is kept has the weight exp((logit - largest) /
// temperature). -1 where a logit is not finite. Of equal logits the first ones are kept. Where there are `put_places`, the
// id of row i also goes to put_target [put_rows], to that place if it is in it. numpy: choice.choose, row by row.
//
// The row is read once for its largest logit. With top_k, columns as likely as the top_k likeliest of each thread's own
// likeliest one are enough, and hardly more; with top_p alone the row is read again for how many columns are how far below
// the largest. Where these are no more than LIST, they are put in a list, in order, and each counts those before it.
// Where more are needed, the least key that is kept, a number that has the order of the logits, is found bit by bit.

#version 460
#include "common.glsl"
#include "kernel.glsl"
#include "fresh.glsl"
#include "relay.glsl"
#include "accurate.glsl"
layout(local_size_x_id = 0) in;

const uint BINS = 2048, LIST = 512, GROUPS = 32;
const uint AHEAD = 8;  // groups of four columns that a thread reads at a time
const uint LISTED = (LIST + THREADS - 1) / THREADS;  // of the list, what a thread has

shared float sums[THREADS];  // of each thread's columns, which are neighbours
shared float group_sums[GROUPS];
shared uint scratch[BINS];  // how many columns are in which bin; and then a list: logits, columns, weights
shared uint listed, last_bin;

#define LOGIT(i) load(JOIN(fresh_, T)(uint64_t(logits), start + (i)))

const uint f32_bytes = 4, f16_bytes = 2, bf16_bytes = 2, BYTES = JOIN(T, _bytes);

// A row is read in groups of four columns that begin at a multiple of their bytes: the first `before` of them, and those
// from `width` on, are no columns of this row, but there.
struct Groups {
    uint64_t base;
    uint before, count;
};

Groups groups_of(uint start) {
    const uint64_t address = uint64_t(logits) + uint64_t(BYTES) * start;
    const uint before = uint(address / BYTES) & 3u;
    return Groups(address - BYTES * before, before, (before + width + 3) / 4);
}

// Groups first, first + THREADS ..., the last one instead of those that there are not.
void read_ahead(Groups groups, uint first, out vec4 values[AHEAD]) {
    [[unroll]] for (uint k = 0; k < AHEAD; ++k)
        values[k] = load(JOIN(JOIN(fresh_, T), x4)(groups.base, min(first + k * THREADS, groups.count - 1)));
}

#define LISTED_LOGIT(i) uintBitsToFloat(scratch[i])
#define LISTED_COLUMN(i) scratch[LIST + (i)]
#define LISTED_WEIGHT(i) scratch[2 * LIST + (i)]

// A number that is larger for a larger float.
uint key_of(float value) {
    uint bits = floatBitsToUint(value == 0.0 ? 0.0 : value);  // -0 is 0
    return (bits & 0x80000000u) != 0u ? ~bits : bits | 0x80000000u;
}

// How far a value is below another, on a scale that is finer the nearer they are.
uint bin_of(float value, float largest) { return floatBitsToUint(abs(largest - value)) >> 20; }

// The largest of all threads' values. It is the same in any order, so each subgroup looks at all parts at once.
float largest_of(float value) {
    value = subgroupMax(value);
    if (gl_NumSubgroups == 1u) return value;
    barrier();  // an earlier reduction may still be read
    if (subgroupElect()) reduction_parts[gl_SubgroupID] = value;
    barrier();
    for (uint i = gl_SubgroupInvocationID; i < gl_NumSubgroups; i += gl_SubgroupSize) value = max(value, reduction_parts[i]);
    return subgroupMax(value);
}

// Sums of fewer than 2^24 ones are exact.
uint workgroup_count(uint count) { return uint(workgroup_sum(float(count))); }

// The sum of the values of the threads before this one, that with its own, and that of all. The end of one thread is the
// beginning of the next, and none is before the one before it, whatever is rounded.
vec3 sums_around(float value) {
    const uint size = THREADS / GROUPS, group = gl_LocalInvocationIndex / size;
    barrier();
    sums[gl_LocalInvocationIndex] = value;
    barrier();
    if (gl_LocalInvocationIndex < GROUPS) {
        float sum = 0.0;
        for (uint i = 0; i < size; ++i) sum += sums[gl_LocalInvocationIndex * size + i];
        group_sums[gl_LocalInvocationIndex] = sum;
    }
    barrier();
    float before_group = 0.0, total = 0.0;
    for (uint i = 0; i < GROUPS; ++i) {
        if (i == group) before_group = total;
        total += group_sums[i];
    }
    float before = 0.0;
    for (uint i = group * size; i < gl_LocalInvocationIndex; ++i) before += sums[i];
    return vec3(before_group + before, before_group + (before + value), total);
}

void draw(uint row, int id) {
    ids.at[row] = id;
    if (uint64_t(put_places) == 0) return;
    const uint place = uint(put_places.at[row]);
    if (place < put_rows) put_target.at[place] = id;
}

// Whether a draw falls on a thread's columns: rounding may leave it at the end of all.
bool is_drawn(float target, vec3 around) {
    return around.x <= target && (target < around.y || (around.y == around.z && around.x < around.y));
}

// Draws from the columns that are nearest to the largest logit, where these are few and all that may be drawn.
bool choose_from_list(uint row, uint top, float largest, float own) {
    const uint thread = gl_LocalInvocationIndex, start = row * width;
    const float temperature = options.at[row * 4], top_p = options.at[row * 4 + 1], min_p = options.at[row * 4 + 2];
    for (uint i = thread; i < BINS; i += THREADS) scratch[i] = 0u;
    barrier();
    float weights = 0.0;  // of the whole row
    if (top < width) {
        atomicAdd(scratch[bin_of(own, largest)], 1u);
    } else {
        for (uint i = thread; i < width; i += THREADS) {
            const float value = LOGIT(i);
            atomicAdd(scratch[bin_of(value, largest)], 1u);
            weights += accurate_exp((value - largest) / temperature);
        }
    }
    // With top_k the first bins that have enough; without, as many as there is room for.
    barrier();
    const uint bins = BINS / THREADS > 0 ? BINS / THREADS : 1, first_bin = thread * bins;
    float counted = 0.0;
    for (uint i = first_bin; i < min(BINS, first_bin + bins); ++i) counted += float(scratch[i]);
    float before = sums_around(counted).x;
    if (thread == 0) listed = 0u;
    barrier();
    for (uint i = first_bin; i < min(BINS, first_bin + bins); ++i) {
        const float after = before + float(scratch[i]);
        const float next = i + 1 < BINS ? after + float(scratch[i + 1]) : float(width + LIST);
        const bool is_last = top < width ? before < float(top) && after >= float(top)
                                         : after <= float(LIST) && next > float(LIST) && after > 0.0;
        if (is_last) {
            last_bin = i;
            listed = 1u;
        }
        before = after;
    }
    barrier();
    const uint border = last_bin;
    const bool has_border = listed != 0u;
    barrier();
    if (!has_border) return false;
    if (thread == 0) listed = 0u;
    barrier();
    const Groups groups = groups_of(start);
    for (uint first = thread; first < groups.count; first += AHEAD * THREADS) {
        vec4 values[AHEAD];
        read_ahead(groups, first, values);
        [[unroll]] for (uint k = 0; k < AHEAD; ++k)
            [[unroll]] for (uint e = 0; e < 4; ++e) {
                const uint group = first + k * THREADS, i = group * 4 + e - groups.before;
                if (group < groups.count && i < width && bin_of(values[k][e], largest) <= border) {
                    const uint place = atomicAdd(listed, 1u);
                    if (place < LIST) {
                        scratch[place] = floatBitsToUint(values[k][e]);
                        LISTED_COLUMN(place) = i;
                    }
                }
            }
    }
    barrier();
    const uint count = listed;
    if (count > LIST) return false;
    uint columns[LISTED], bits[LISTED], places[LISTED];
    [[unroll]] for (uint n = 0; n < LISTED; ++n) {
        const uint i = thread + n * THREADS;
        places[n] = LIST;
        if (i < count) {
            columns[n] = LISTED_COLUMN(i);
            bits[n] = scratch[i];
            places[n] = 0u;
            for (uint j = 0; j < count; ++j) places[n] += uint(LISTED_COLUMN(j) < columns[n]);
        }
    }
    barrier();
    [[unroll]] for (uint n = 0; n < LISTED; ++n)
        if (places[n] < LIST) {
            scratch[places[n]] = bits[n];
            LISTED_COLUMN(places[n]) = columns[n];
        }
    barrier();

    // Each counts the likelier ones, and of equal ones those before it; those of top_k have a weight.
    float kept = 0.0;
    for (uint i = thread; i < count; i += THREADS) {
        const float value = LISTED_LOGIT(i);
        uint likelier = 0u;
        for (uint j = 0; j < count; ++j) likelier += uint(LISTED_LOGIT(j) > value || (LISTED_LOGIT(j) == value && j < i));
        const float weight = likelier < top ? accurate_exp((value - largest) / temperature) : 0.0;
        LISTED_WEIGHT(i) = floatBitsToUint(weight);
        kept += weight;
    }
    kept = workgroup_sum(kept);
    if (top == width) weights = workgroup_sum(weights);
    const float wanted = top_p * (top < width ? kept : weights);
    if (top_p < 1.0) {
        if (kept < wanted) return false;
        barrier();
        float drawn[LISTED];
        for (uint i = thread, n = 0; i < count; i += THREADS, ++n) {
            const float value = LISTED_LOGIT(i);
            float likelier = 0.0;
            bool is_first = true;
            for (uint j = 0; j < count; ++j)
                if (LISTED_LOGIT(j) > value || (LISTED_LOGIT(j) == value && j < i)) {
                    likelier += uintBitsToFloat(LISTED_WEIGHT(j));
                    is_first = false;
                }
            drawn[n] = is_first || likelier < wanted ? uintBitsToFloat(LISTED_WEIGHT(i)) : 0.0;
        }
        barrier();
        for (uint i = thread, n = 0; i < count; i += THREADS, ++n) LISTED_WEIGHT(i) = floatBitsToUint(drawn[n]);
    }
    barrier();

    const uint part = (count + THREADS - 1) / THREADS;
    const uint begin = min(count, thread * part), end = min(count, begin + part);
    vec3 around = vec3(0.0);
    float target = 0.0;
    for (uint pass = 0; pass < 2; ++pass) {
        float sum = 0.0;
        uint found = width;
        bool is_passed = false;
        for (uint i = begin; i < end && !is_passed; ++i) {
            const float weight = uintBitsToFloat(LISTED_WEIGHT(i));
            if (weight >= min_p && weight > 0.0) {
                sum += weight;
                found = LISTED_COLUMN(i);
                is_passed = pass == 1u && around.x + sum > target;
            }
        }
        if (pass == 0u) {
            around = sums_around(sum);
            target = options.at[row * 4 + 3] * around.z;
        } else if (found < width && is_drawn(target, around)) {
            draw(row, int(found));
        }
    }
    return true;
}

void choose_row() {
    const uint thread = gl_LocalInvocationIndex, row = gl_WorkGroupID.x, start = row * width;
    const float temperature = options.at[row * 4], top_p = options.at[row * 4 + 1], min_p = options.at[row * 4 + 2];
    const uint top = top_k.at[row] > 0 ? min(uint(top_k.at[row]), width) : width;

    uint likeliest = width;
    const float infinity = uintBitsToFloat(0x7f800000u);
    float largest = -infinity;  // infinite where a logit is not finite
    const Groups groups = groups_of(start);
    for (uint first = thread; first < groups.count; first += AHEAD * THREADS) {
        vec4 values[AHEAD];
        read_ahead(groups, first, values);
        [[unroll]] for (uint k = 0; k < AHEAD; ++k)
            [[unroll]] for (uint e = 0; e < 4; ++e) {
                const uint group = first + k * THREADS, i = group * 4 + e - groups.before;
                if (group >= groups.count || i >= width) continue;
                const float value = is_finite(values[k][e]) ? values[k][e] : infinity;
                if (value > largest) {
                    largest = value;
                    likeliest = i;
                }
            }
    }
    const float own = largest;
    largest = largest_of(largest);
    if (largest == infinity) {
        if (thread == 0) draw(row, -1);
        return;
    }
    if (temperature == 0.0) {
        // The first of the largest ones; of fewer than 2^24 columns each is a float.
        const float first = -largest_of(own == largest ? -float(likeliest) : -float(width));
        if (thread == 0) draw(row, int(first));
        return;
    }
#define WEIGHT(value) accurate_exp(((value) - largest) / temperature)
    if ((top < width || top_p < 1.0) && choose_from_list(row, top, largest, own)) return;

    // Kept are the columns above the key `least`, and the first `ties` of those at it.
    uint least = 0u, ties = width;
    if (top < width) {
        for (uint bit = 0x80000000u; bit != 0u; bit >>= 1) {
            uint count = 0u;
            for (uint i = thread; i < width; i += THREADS) count += uint(key_of(LOGIT(i)) >= (least | bit));
            if (workgroup_count(count) >= top) least |= bit;
        }
        uint above = 0u;
        for (uint i = thread; i < width; i += THREADS) above += uint(key_of(LOGIT(i)) > least);
        ties = top - workgroup_count(above);
    }
    if (top_p < 1.0) {
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
    const uint left = uint(max(0.0, float(ties) - sums_around(float(equal)).x));
    // Twice the same loop: first the sum of this thread's weights, then the column at which the sum of all passes the draw.
    vec3 around = vec3(0.0);
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
            around = sums_around(sum);
            target = options.at[row * 4 + 3] * around.z;
        } else if (found < width && is_drawn(target, around)) {
            draw(row, int(found));
        }
    }
}

void main() {
    relay_wait();
    choose_row();
    relay_end();
}
