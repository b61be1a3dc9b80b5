// Rounds that follow each other without a barrier; see alpha/backend_helios_relay.py. Include after kernel.glsl, which
// declares RELAY, whether a dispatch is of such a round (2: of one on trial), and `relay`, lines of RELAY_STRIDE words. Their
// first words are numbers of workgroups that have not ended: of the round before, and in the next line of this round. The
// words from the third on are the address of a word where the host is told of a wait that was in vain.
//
// What a round before may have written is read after relay_wait, and past caches that are not kept the same: by buffers
// of fresh.glsl. With RELAY 3 a kernel that can waits for the numbers themselves: it reads them again until none is
// unwritten (fresh.glsl).
#extension GL_KHR_memory_scope_semantics : require

const uint RELAY_STRIDE = 32;
const uint RELAY_ATTEMPTS = RELAY == 2 ? 1u << 12 : 1u << 16;  // some 50 ms, on trial 3

#define RELAY_BARRIER                                                                                                  \
    controlBarrier(gl_ScopeWorkgroup, gl_ScopeWorkgroup, gl_StorageSemanticsBuffer | gl_StorageSemanticsShared,        \
                   gl_SemanticsAcquireRelease)

void relay_tell() { u32_buffer(packUint2x32(uvec2(relay.at[2], relay.at[3]))).at[0] = 1u; }

// Waits until all workgroups of the round before have ended. All threads of the workgroup must come here together.
void relay_wait() {
    if (RELAY == 0) return;
    if (gl_LocalInvocationIndex == 0) {
        uint attempts = 0;
        while (attempts < RELAY_ATTEMPTS && atomicLoad(relay.at[0], gl_ScopeDevice, 0, 0) != 0) ++attempts;
        if (attempts == RELAY_ATTEMPTS) relay_tell();
    }
    RELAY_BARRIER;
}

// Counts a workgroup that has nothing to do: it need not have waited, since others of its round have.
void relay_skip() {
    if (RELAY != 0 && gl_LocalInvocationIndex == 0) atomicAdd(relay.at[RELAY_STRIDE], ~0u, gl_ScopeDevice, 0, 0);
}

// Counts the workgroup, which has read and written everything. All threads must come here together.
void relay_end() {
    if (RELAY == 0) return;
    RELAY_BARRIER;
    if (gl_LocalInvocationIndex == 0) {
        memoryBarrier(gl_ScopeDevice, gl_StorageSemanticsBuffer, gl_SemanticsRelease);
        atomicAdd(relay.at[RELAY_STRIDE], ~0u, gl_ScopeDevice, 0, 0);
    }
}
