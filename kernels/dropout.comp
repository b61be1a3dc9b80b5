// y[i] = 0 where random 16-bit integer i is below `threshold`, x[i] * scale elsewhere (Srivastava et al. 2014).
//
// x, y [count]; step [1], the step of the random key. Integer i is half i % 8 of the Philox block i / 8, the low half of
// each word first; a thread makes one block.
//
// numpy: np.where(rng.random_uint16(count, seed, stream, step[0]) < threshold, 0, x * scale)
#version 460
#include "common.glsl"
#include "kernel.glsl"
layout(local_size_x_id = 0) in;
#include "vectors.glsl"

void main() {
    uint blocks = (count + 7) / 8;
    for (uint block = gl_GlobalInvocationID.x; block < blocks; block += GRID_THREADS) {
        uvec4 words = random_block(block, stream, uint(step.at[0]), uvec2(seed_low, seed_high));
        [[unroll]] for (uint part = 0; part < 8; part += VECTOR) {
            uint i = block * 8 + part;
            if (i < count) {
                uvec2 pair = part < 4 ? words.xy : words.zw;
                uvec4 random = uvec4(pair.x & 0xffff, pair.x >> 16, pair.y & 0xffff, pair.y >> 16);
                if (VECTOR == 1) {
                    random.x = random[part % 4];
                }
                store_T(y, i, mix(load_T(x, i) * scale, vec4(0.0), lessThan(random, uvec4(threshold))));
            }
        }
    }
}
