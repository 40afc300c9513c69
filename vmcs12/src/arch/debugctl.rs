//! IA32_DEBUGCTL. SDM Vol. 3, "IA32_DEBUGCTL MSR".

/// Last-branch recording.
pub const LBR: u64 = 1 << 0;
/// Single-step on branches, with RFLAGS.TF.
pub const BTF: u64 = 1 << 1;
