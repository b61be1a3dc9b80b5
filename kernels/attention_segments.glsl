// Which keys a query may see where documents share a sequence: those from first_keys on, which never decrease along it.
//
// Expects the specialization constant SEGMENTS (0: there is one document) and the push constants first_keys
// [B, query_length] and query_length.

// For queries behind the last one, that of the last one.
uint first_seen(uint sequence, uint t) {
    return SEGMENTS == 1 ? uint(first_keys.at[sequence * query_length + min(t, query_length - 1)]) : 0;
}

// The first query that sees no key before `end`, or query_length.
uint end_of_queries(uint sequence, uint end) {
    if (SEGMENTS == 0) return query_length;
    uint low = 0, high = query_length;
    while (low < high) {
        uint middle = (low + high) / 2;
        if (first_seen(sequence, middle) < end) low = middle + 1;
        else high = middle;
    }
    return low;
}
