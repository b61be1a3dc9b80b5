// What attention to the cache must read again once the round before has ended, in a relay: keys and values that this
// step writes. Include after relay.glsl and attention_cached.glsl.

shared uint first_written;

// Waits, and says from which position on a row that sees `seen` of them has keys and values that a row of this step writes,
// which may be one of another sequence that has the same block there.
uint wait_for_written(uint table, uint seen, uint head) {
    if (gl_LocalInvocationIndex == 0) first_written = ~0u;
    barrier();
    for (uint other = gl_LocalInvocationIndex; other < rows; other += THREADS) {
        const uint position = uint(positions.at[other]);
        if (position >= seen) continue;
        const uint stands = place_of(uint(sequences.at[other]) * pages, position, head);
        if (stands == place_of(table, position, head)) atomicMin(first_written, position);
    }
    relay_wait();
    return first_written;
}
