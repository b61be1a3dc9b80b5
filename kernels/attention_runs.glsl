// Tiles of ROWS rows, and the runs in them: neighbours that are of one sequence. Grid: (.., .., N / ROWS + lone_rows /
// LONE_TOGETHER), a tile to a workgroup along z.
//
// A row whose neighbours are of other sequences, as those that decode, keeps a workgroup as long as many rows do. So
// those of the first `lone_rows` rows are left to workgroups of their own, the last ones along z.
//
// Include after attention_cached.glsl. Expects PART, the positions of a part.

shared uint row_sequences[ROWS], row_seen[ROWS];
shared uint starts_of_runs, lone;  // a bit for each row

struct Rows {
    uint first, count;
    bool is_lone;
};

// How many of a part's positions, which begin at `first`, a row of the tile sees.
uint count_of(uint row, uint first) { return min(PART, row_seen[row] - min(row_seen[row], first)); }

// The workgroup's rows; none where it has nothing to do.
Rows find_rows() {
    const uint thread = gl_LocalInvocationIndex, tiles = (rows + ROWS - 1) / ROWS;
    Rows tile;
    tile.is_lone = gl_WorkGroupID.z >= tiles;
    // The last rows, which see most, come first.
    tile.first = tile.is_lone ? (gl_WorkGroupID.z - tiles) * LONE_TOGETHER : (tiles - 1 - gl_WorkGroupID.z) * ROWS;
    tile.count = min(tile.is_lone ? LONE_TOGETHER : ROWS, rows - tile.first);
    if (thread == 0) starts_of_runs = lone = 0;
    barrier();
    if (thread < tile.count) {
        const uint row = tile.first + thread, sequence = uint(sequences.at[row]);
        const bool starts = row == 0 || uint(sequences.at[row - 1]) != sequence;
        const bool ends = row + 1 == rows || uint(sequences.at[row + 1]) != sequence;
        row_sequences[thread] = sequence;
        row_seen[thread] = uint(positions.at[row]) + 1;
        if (starts || thread == 0) atomicOr(starts_of_runs, 1u << thread);
        if (starts && ends && row < lone_rows) atomicOr(lone, 1u << thread);
    }
    barrier();
    if (tile.is_lone && lone == 0) tile.count = 0;
    return tile;
}

// Where the run ends that starts at a row.
uint end_of_run(Rows tile, uint start) {
    const uint later = starts_of_runs & ~((2u << start) - 1u);
    return later == 0 ? tile.count : findLSB(later);
}

// Whether a run is this workgroup's.
bool is_own(Rows tile, uint start) { return (lone >> start & 1u) == uint(tile.is_lone); }
