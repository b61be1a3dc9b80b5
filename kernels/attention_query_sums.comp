// The gradients of queries, from what attention_backward_key keeps of each tile of keys.
//
//     query_gradient[b, t, h] = SCALE sum over the tiles of TILE_KEYS keys of which query t sees some of parts[tile, b, t, h]
//
// parts [tiles, batch, query_length, QUERY_HEADS, WIDTH]; query_gradient [batch, query_length, QUERY_HEADS, WIDTH], its tokens
// GRADIENT_STRIDE elements apart. A thread has a quad. numpy: (parts * seen).sum(0) * SCALE

#version 460
#include "common.glsl"
#include "kernel.glsl"
#include "attention.glsl"
#include "attention_segments.glsl"
layout(local_size_x_id = 0) in;

void main() {
    const uint quads = batch * query_length * QUERY_HEADS * QUADS, tile_numbers = batch * query_length * QUERY_HEADS * WIDTH;
    for (uint i = gl_GlobalInvocationID.x; i < quads; i += gl_NumWorkGroups.x * THREADS) {
        const uint row = i / QUADS, quad = i % QUADS, token = row / QUERY_HEADS;
        const uint sequence = token / query_length, t = token % query_length;
        const uint last = (key_length - query_length + t) / TILE_KEYS;
        vec4 sum = vec4(0.0);
        for (uint tile = first_seen(sequence, t) / TILE_KEYS; tile <= last; ++tile)
            sum += read_float_quad(parts, tile * tile_numbers + row * WIDTH, quad);
        write_quad(query_gradient, token * GRADIENT_STRIDE + row % QUERY_HEADS * WIDTH, quad, sum * SCALE);
    }
}
