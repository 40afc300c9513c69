//! The instruction-set extensions executed here, and where CPUID announces them.

use iced_x86::CpuidFeature;

/// The four registers that CPUID returns: EAX, EBX, ECX, EDX.
pub type CpuidLeaf = [u32; 4];

macro_rules! features {
    ($($(#[$meta:meta])* $name:ident $leaf:literal $subleaf:literal $register:ident $bit:literal [$($iced:ident)*];)*) => {
        /// An instruction-set extension. SDM Vol. 2, "CPUID—CPU Identification".
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[repr(u8)]
        #[allow(missing_docs, reason = "the manual's own names")]
        pub enum Feature { $($(#[$meta])* $name),* }

        impl Feature {
            /// Every extension.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// Is it announced by this CPUID?
            fn announced(self, cpuid: &impl Fn(u32, u32) -> CpuidLeaf) -> bool {
                match self {
                    $(Self::$name => cpuid($leaf, $subleaf)[Register::$register as usize] >> $bit & 1 == 1),*
                }
            }

            /// What the decoder's name means here; `None` if no instruction with it is executed here.
            pub(crate) fn from_decoder(name: CpuidFeature) -> Option<Self> {
                match name { $($(CpuidFeature::$iced => Some(Self::$name),)*)* _ => None }
            }
        }
    };
}

enum Register {
    Eax = 0,
    Ebx = 1,
    Ecx = 2,
    Edx = 3,
}

#[rustfmt::skip]
features! {
    // name      leaf  sub reg bit  the decoder's names
    Fpu          0x01  0   Edx  0   [FPU FPU287 FPU387];
    Cmov         0x01  0   Edx 15   [CMOV];
    Mmx          0x01  0   Edx 23   [MMX];
    Fxsr         0x01  0   Edx 24   [FXSR];
    Sse          0x01  0   Edx 25   [SSE];
    Sse2         0x01  0   Edx 26   [SSE2];
    Sse3         0x01  0   Ecx  0   [SSE3];
    Pclmulqdq    0x01  0   Ecx  1   [PCLMULQDQ];
    Ssse3        0x01  0   Ecx  9   [SSSE3];
    Fma          0x01  0   Ecx 12   [FMA];
    Sse41        0x01  0   Ecx 19   [SSE4_1];
    Sse42        0x01  0   Ecx 20   [SSE4_2];
    Aes          0x01  0   Ecx 25   [AES];
    Xsave        0x01  0   Ecx 26   [XSAVE];
    Avx          0x01  0   Ecx 28   [AVX];
    F16c         0x01  0   Ecx 29   [F16C];
    Avx2         0x07  0   Ebx  5   [AVX2];
    Sha          0x07  0   Ebx 29   [SHA];
    Gfni         0x07  0   Ecx  8   [GFNI];
    Vaes         0x07  0   Ecx  9   [VAES];
    Vpclmulqdq   0x07  0   Ecx 10   [VPCLMULQDQ];
    Xsaveopt     0x0d  1   Eax  0   [XSAVEOPT];
    Xsavec       0x0d  1   Eax  1   [XSAVEC];
    Xsaves       0x0d  1   Eax  3   [XSAVES];
}

/// A set of extensions.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Features(u32);

const _: () = assert!(Feature::ALL.len() <= 32);

impl Features {
    /// The extensions that a CPUID, a guest's or the host's, announces.
    pub fn from_cpuid(cpuid: impl Fn(u32, u32) -> CpuidLeaf) -> Self {
        let announced = Feature::ALL.iter().filter(|feature| feature.announced(&cpuid));
        Self(announced.fold(0, |set, &feature| set | 1 << feature as u32))
    }

    /// What the host executes. The save and restore instructions are software, so they need no host's.
    pub fn host() -> Self {
        const IN_SOFTWARE: [Feature; 5] =
            [Feature::Fxsr, Feature::Xsave, Feature::Xsaveopt, Feature::Xsavec, Feature::Xsaves];
        let announced = Self::from_cpuid(|leaf, subleaf| {
            let result = core::arch::x86_64::__cpuid_count(leaf, subleaf);
            [result.eax, result.ebx, result.ecx, result.edx]
        });
        let usable = if announced.has(Feature::Avx) && !std::arch::is_x86_feature_detected!("avx") {
            announced.without_vex()
        } else {
            announced
        };
        IN_SOFTWARE.into_iter().fold(usable, Self::with)
    }

    /// Is the extension in the set?
    pub const fn has(self, feature: Feature) -> bool {
        self.0 >> feature as u32 & 1 == 1
    }

    /// The set with one more.
    #[must_use]
    pub const fn with(self, feature: Feature) -> Self {
        Self(self.0 | 1 << feature as u32)
    }

    /// The set with one less.
    #[must_use]
    pub const fn without(self, feature: Feature) -> Self {
        Self(self.0 & !(1 << feature as u32))
    }

    /// What is in both.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Without what needs YMM state, which this operating system did not enable.
    fn without_vex(self) -> Self {
        use Feature::{Avx, Avx2, F16c, Fma, Vaes, Vpclmulqdq};
        [Avx, Avx2, Fma, F16c, Vaes, Vpclmulqdq].into_iter().fold(self, Self::without)
    }

    /// Are all that the decoder names in the set?
    pub(crate) fn has_all(self, names: &[CpuidFeature]) -> bool {
        names.iter().all(|&name| Feature::from_decoder(name).is_some_and(|feature| self.has(feature)))
    }
}
