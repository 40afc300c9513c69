//! The processor state that is in neither VMCS: what L0 saves and restores itself around an entry.

/// General registers in the encoding's order. SDM Vol. 1, "General-Purpose Registers".
#[allow(missing_docs, reason = "the manual's own names")]
pub mod gpr {
    pub const RAX: usize = 0;
    pub const RCX: usize = 1;
    pub const RDX: usize = 2;
    pub const RBX: usize = 3;
    pub const RSP: usize = 4;
    pub const RBP: usize = 5;
    pub const RSI: usize = 6;
    pub const RDI: usize = 7;
}

/// The legacy 512-byte FXSAVE image, the XSAVE header aside, and the upper halves of YMM0–15.
/// SDM Vol. 1, "FXSAVE Area", "XSAVE-Managed State".
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C, align(64))]
pub struct VectorState {
    /// XMM0–15 as the low and YMM upper halves as the high 16 bytes: YMM0–15.
    pub ymm: [[u8; 32]; 16],
    /// ST0–ST7 in stack order (as FXSAVE stores them), 80 bits each in 16 bytes.
    pub st: [[u8; 16]; 8],
    /// x87 control word.
    pub fcw: u16,
    /// x87 status word, with TOP.
    pub fsw: u16,
    /// Abridged tag word: bit i is 1 if *physical* register i is not empty.
    pub ftw: u8,
    /// Last x87 opcode.
    pub fop: u16,
    /// Last x87 instruction pointer.
    pub fip: u64,
    /// Selector of FIP.
    pub fcs: u16,
    /// Last x87 data pointer.
    pub fdp: u64,
    /// Selector of FDP.
    pub fds: u16,
    /// MXCSR.
    pub mxcsr: u32,
}

impl Default for VectorState {
    /// As after power-up reset. SDM Vol. 3, "Processor State After Reset".
    fn default() -> Self {
        Self {
            fcw: 0x40,
            fsw: 0,
            ftw: 0xff,
            fop: 0,
            fip: 0,
            fcs: 0,
            fdp: 0,
            fds: 0,
            mxcsr: 0x1f80,
            st: [[0; 16]; 8],
            ymm: [[0; 32]; 16],
        }
    }
}

/// What is in neither VMCS, nor swapped by entry and exit, except RSP, RIP, RFLAGS, CR0, CR3, CR4, DR7 and
/// segments, which are in the VMCS.
#[derive(Clone, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct CpuState {
    /// RAX…R15. The RSP slot is GUEST_RSP's copy while the processor runs and has no meaning outside.
    pub gpr: [u64; 16],
    /// CR2.
    pub cr2: u64,
    /// DR0–DR3.
    pub dr: [u64; 4],
    /// DR6.
    pub dr6: u64,
    /// XCR0.
    pub xcr0: u64,
    /// IA32_XSS.
    pub xss: u64,
    /// PKRU.
    pub pkru: u32,
    /// IA32_STAR.
    pub star: u64,
    /// IA32_LSTAR.
    pub lstar: u64,
    /// IA32_CSTAR.
    pub cstar: u64,
    /// IA32_FMASK.
    pub fmask: u64,
    /// IA32_KERNEL_GS_BASE.
    pub kernel_gs_base: u64,
    /// IA32_TSC_AUX.
    pub tsc_aux: u64,
    /// IA32_PAT, while neither VMCS control loads or saves it.
    pub pat: u64,
    /// IA32_SPEC_CTRL.
    pub spec_ctrl: u64,
    /// State of the generator behind RDRAND and RDSEED.
    pub random: u64,
    /// x87, SSE and AVX state.
    pub vector: VectorState,
}

impl Default for CpuState {
    /// As after power-up reset. SDM Vol. 3, "Processor State After Reset".
    fn default() -> Self {
        Self {
            gpr: [0; 16],
            cr2: 0,
            dr: [0; 4],
            dr6: 0xffff_0ff0,
            xcr0: 1,
            xss: 0,
            pkru: 0,
            star: 0,
            lstar: 0,
            cstar: 0,
            fmask: 0,
            kernel_gs_base: 0,
            tsc_aux: 0,
            pat: 0x0007_0406_0007_0406,
            spec_ctrl: 0,
            random: 0,
            vector: VectorState::default(),
        }
    }
}
