//! Lines by which a guest says on its console how far it is.

/// The longest line looked at; a longer one says nothing.
const LINE_LIMIT: usize = 200;

const MILESTONE: &str = "testudo-milestone: ";
const LOOP: &str = "testudo-micro: ";
const FAILURE: &str = "testudo-failure: ";

/// The ready-made guest's milestones, in the order in which they come.
pub mod milestone {
    /// L1's kernel is about to start.
    pub const L1_KERNEL: &str = "l1_kernel";
    /// L1's init runs.
    pub const L1_USERSPACE: &str = "l1_userspace";
    /// L1 has /dev/kvm.
    pub const KVM_LOADED: &str = "kvm_loaded";
    /// L2's kernel is about to start.
    pub const L2_KERNEL: &str = "l2_kernel";
    /// L2's init runs.
    pub const L2_USERSPACE: &str = "l2_userspace";
    /// L2 has switched its machine off, and L1 is about to.
    pub const END: &str = "end";
    /// All of them.
    pub const ALL: [&str; 6] = [L1_KERNEL, L1_USERSPACE, KVM_LOADED, L2_KERNEL, L2_USERSPACE, END];
}

/// What a line says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Marker {
    /// `testudo-milestone: NAME`
    Milestone(String),
    /// `testudo-micro: NAME begin COUNT`
    LoopBegins(String, u64),
    /// `testudo-micro: NAME end COUNT`
    LoopEnds(String, u64),
    /// `testudo-failure: TEXT`
    Failure(String),
}

impl Marker {
    /// The marker on this line, if there is one.
    #[must_use]
    pub fn parse(line: &str) -> Option<Self> {
        let line = line.trim_end();
        if let Some(name) = line.strip_prefix(MILESTONE) {
            return is_name(name).then(|| Self::Milestone(name.to_owned()));
        }
        if let Some(text) = line.strip_prefix(FAILURE) {
            return Some(Self::Failure(text.to_owned()));
        }
        let mut words = line.strip_prefix(LOOP)?.split(' ');
        let (name, edge, count) = (words.next()?, words.next()?, words.next()?.parse().ok()?);
        match edge {
            _ if !is_name(name) || words.next().is_some() => None,
            "begin" => Some(Self::LoopBegins(name.to_owned(), count)),
            "end" => Some(Self::LoopEnds(name.to_owned(), count)),
            _ => None,
        }
    }
}

/// The line that says that `name` is reached.
#[must_use]
pub fn milestone_line(name: &str) -> String {
    format!("{MILESTONE}{name}\n")
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// Finds lines in a stream of bytes, however it is cut.
#[derive(Default)]
pub struct Lines {
    line: Vec<u8>,
    too_long: bool,
}

impl Lines {
    /// Takes the next bytes and calls `found` for each marker completed by them.
    pub fn take(&mut self, bytes: &[u8], mut found: impl FnMut(Marker)) {
        for &byte in bytes {
            if byte == b'\n' {
                self.complete(&mut found);
            } else if self.line.len() < LINE_LIMIT {
                self.line.push(byte);
            } else {
                self.too_long = true;
            }
        }
    }

    fn complete(&mut self, found: &mut impl FnMut(Marker)) {
        let line = String::from_utf8_lossy(&self.line);
        if let Some(marker) = Marker::parse(&line).filter(|_| !self.too_long) {
            found(marker);
        }
        self.line.clear();
        self.too_long = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn markers(chunks: &[&str]) -> Vec<Marker> {
        let (mut lines, mut found) = (Lines::default(), Vec::new());
        for chunk in chunks {
            lines.take(chunk.as_bytes(), |marker| found.push(marker));
        }
        found
    }

    fn milestone(name: &str) -> Marker {
        Marker::Milestone(name.into())
    }

    #[test]
    fn found_however_the_bytes_are_cut() {
        let text = "noise\r\ntestudo-milestone: l1_userspace\r\r\n[    0.1] noise\n";
        for cut in 0..text.len() {
            let (a, b) = text.split_at(cut);
            assert_eq!(markers(&[a, b]), [milestone("l1_userspace")], "cut at {cut}");
        }
    }

    #[test]
    fn a_line_counts_when_it_is_complete() {
        assert_eq!(markers(&["testudo-milestone: end"]), []);
        assert_eq!(markers(&["testudo-milestone: end", "\n"]), [milestone("end")]);
    }

    #[test]
    fn only_whole_lines_of_that_form_count() {
        assert_eq!(markers(&["echo testudo-milestone: end\n"]), []);
        assert_eq!(markers(&["testudo-milestone: two words\n"]), []);
        assert_eq!(markers(&["testudo-milestone: \n"]), []);
        let long = "x".repeat(LINE_LIMIT * 3);
        assert_eq!(
            markers(&[&format!("testudo-failure: {long}\n"), "testudo-milestone: end\n"]),
            [milestone("end")]
        );
    }

    #[test]
    fn loops_have_a_name_and_a_count() {
        let lines =
            "testudo-micro: cpuid begin 20000\ntestudo-micro: cpuid end 20000\ntestudo-micro: cpuid end x\n";
        let expected = [Marker::LoopBegins("cpuid".into(), 20_000), Marker::LoopEnds("cpuid".into(), 20_000)];
        assert_eq!(markers(&[lines]), expected);
    }

    #[test]
    fn what_is_printed_is_what_is_found() {
        assert_eq!(markers(&[&milestone_line(milestone::L2_KERNEL)]), [milestone("l2_kernel")]);
    }
}
