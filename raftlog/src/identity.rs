//! Whose log a directory holds.

use crate::format::BLOCK_BYTES;
use crate::format::segment::SegmentHeader;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// The identity in the newest readable segment header of `dir`; `None` if the directory holds no log.
/// Lets a member that restarts find out who it is before it opens its log; [`crate::Log::open`] checks
/// everything again. Blocks for reading one block per segment at most.
pub fn identity(dir: &Path) -> io::Result<Option<[u64; 2]>> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    let mut segments = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "log") {
            segments.push(path);
        }
    }
    // Names are fixed-width numbers: the newest comes last.
    segments.sort();
    for path in segments.iter().rev() {
        let mut block = vec![0; BLOCK_BYTES];
        let read = File::open(path)?.read_exact(&mut block);
        if read.is_ok()
            && let Ok(header) = SegmentHeader::decode(&block)
        {
            return Ok(Some(header.identity));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Log, Options};

    #[test]
    fn a_log_tells_whose_it_is_and_other_directories_tell_nothing() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(identity(dir.path()).unwrap(), None);
        assert_eq!(identity(&dir.path().join("absent")).unwrap(), None);
        let mut options = Options::new(dir.path());
        options.segment_bytes = 64 << 10;
        options.identity = [7, 9];
        let (log, _) = Log::open(options).unwrap();
        log.close();
        assert_eq!(identity(dir.path()).unwrap(), Some([7, 9]));
        std::fs::write(dir.path().join("ffffffffffffffff.log"), b"short").unwrap();
        assert_eq!(identity(dir.path()).unwrap(), Some([7, 9]));
    }
}
