//! `utl wal dump` shows what a log holds, damaged or not; `utl wal verify` says what a start would make of
//! it.

use super::Failure;
use clap::{Args, Subcommand};
use raftlog::inspect::{self, Found, HeaderFacts, Record, Standing};
use raftlog::{Committed, HardState};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

#[derive(Subcommand)]
pub(crate) enum Wal {
    /// Shows segments, batches and records.
    Dump(Dump),
    /// Reads everything and says whether a start would accept it, and what it would find.
    Verify(Verify),
}

#[derive(Args)]
pub(crate) struct Dump {
    /// A data directory, what --wal-dir named, or the directory of a log.
    dir: PathBuf,
    /// Batches only, not their records.
    #[arg(long)]
    batches: bool,
    /// Show only entries from this index on, and no other records.
    #[arg(long, value_name = "INDEX")]
    start_index: Option<u64>,
    /// Show only entries up to this index, and no other records.
    #[arg(long, value_name = "INDEX")]
    end_index: Option<u64>,
    /// Show the data of entries, as hexadecimal digits.
    #[arg(long)]
    data: bool,
}

#[derive(Args)]
pub(crate) struct Verify {
    /// A data directory, what --wal-dir named, or the directory of a log.
    dir: PathBuf,
    /// An entry that is known to be committed, for instance the last that the tree file holds: a log that
    /// ends before it is refused.
    #[arg(long, value_name = "INDEX")]
    committed: Option<u64>,
}

pub(crate) fn run(command: Wal, out: &mut dyn Write) -> Result<(), Failure> {
    match command {
        Wal::Dump(arguments) => dump(&arguments, out),
        Wal::Verify(arguments) => verify(&arguments, out),
    }
}

/// The directory of the log below a data directory or what `--wal-dir` named, or the directory itself.
fn log_dir(dir: &Path) -> PathBuf {
    let below = [dir.join("member").join("log"), dir.join("log")];
    let found = below.into_iter().find(|d| d.is_dir());
    found.unwrap_or_else(|| dir.to_path_buf())
}

fn verify(arguments: &Verify, out: &mut dyn Write) -> Result<(), Failure> {
    let dir = log_dir(&arguments.dir);
    // The term matters only when a loss is accepted, which is not done here.
    let committed = arguments
        .committed
        .map(|index| Committed { index, term: 0 });
    let summary = inspect::verify(&dir, committed).map_err(|e| Failure::Told(e.to_string()))?;
    let [cluster, member] = summary.identity;
    writeln!(out, "sound: {}", dir.display())?;
    writeln!(out, "cluster {cluster:x} member {member:x}")?;
    writeln!(out, "{} segments in use", summary.segments)?;
    writeln!(
        out,
        "{} entries from {} to {}, {} bytes",
        summary.entries, summary.first_index, summary.last_index, summary.bytes
    )?;
    writeln!(out, "{}", hard_state(&summary.hard_state))?;
    writeln!(out, "{}", snapshot(summary.snapshot))?;
    writeln!(out, "a start would find: {}", summary.report)?;
    Ok(())
}

fn dump(arguments: &Dump, out: &mut dyn Write) -> Result<(), Failure> {
    let dir = log_dir(&arguments.dir);
    let mut closed = false;
    let shown = inspect::dump(&dir, &mut |found| {
        let written = show(found, arguments, out);
        closed |= matches!(&written, Err(e) if e.kind() == io::ErrorKind::BrokenPipe);
        written
    });
    match shown {
        Err(_) if closed => Err(Failure::Closed),
        other => other.map_err(|e| Failure::Told(e.to_string())),
    }
}

fn show(found: &Found<'_>, arguments: &Dump, out: &mut dyn Write) -> io::Result<()> {
    match found {
        Found::File { name, bytes } => writeln!(out, "{name} {bytes} bytes, not in use"),
        Found::Segment {
            name,
            bytes,
            header: Ok(header),
        } => {
            writeln!(out, "{name} {bytes} bytes")?;
            show_header(header, out)
        }
        Found::Segment {
            name,
            bytes,
            header: Err(fault),
        } => writeln!(out, "{name} {bytes} bytes, no header ({fault})"),
        Found::Batch {
            offset,
            facts,
            standing,
        } => {
            let standing = match standing {
                Standing::Chained => "",
                Standing::OutOfChain => " OUT OF CHAIN",
                Standing::Stale => " of an earlier use",
                Standing::Torn => " TORN",
            };
            let kind = match facts.records {
                0 => " seal".to_owned(),
                n => format!(" records {n}"),
            };
            writeln!(
                out,
                "  {offset:>9} batch {}{kind} bytes {} durable {}{standing}",
                facts.batch, facts.bytes, facts.durable
            )
        }
        Found::Record(record) => show_record(record, arguments, out),
        Found::Noise { offset, blocks } => {
            writeln!(out, "  {offset:>9} {blocks} blocks that hold no batch")
        }
        Found::End { zeros } => writeln!(out, "  {zeros} bytes of zeros"),
    }
}

fn show_header(header: &HeaderFacts, out: &mut dyn Write) -> io::Result<()> {
    let [cluster, member] = header.identity;
    writeln!(
        out,
        "          0 segment {:x} id {:016x} cluster {cluster:x} member {member:x}",
        header.seq, header.seg_id
    )?;
    let (segment, offset) = header.previous_end;
    match segment {
        0 => writeln!(out, "            the first")?,
        _ => writeln!(out, "            segment {segment:x} ends at byte {offset}")?,
    }
    writeln!(
        out,
        "            entries {}..={} before, {}, {}, next batch {}",
        header.first_index,
        header.last_index,
        hard_state(&header.hard_state),
        snapshot(header.snapshot),
        header.next_batch
    )
}

fn show_record(
    record: &Option<Record<'_>>,
    arguments: &Dump,
    out: &mut dyn Write,
) -> io::Result<()> {
    let ranged = arguments.start_index.is_some() || arguments.end_index.is_some();
    let wanted = |index: u64| {
        arguments.start_index.is_none_or(|start| index >= start)
            && arguments.end_index.is_none_or(|end| index <= end)
    };
    if arguments.batches {
        return Ok(());
    }
    let Some(record) = *record else {
        return writeln!(out, "              RECORD THAT MAKES NO SENSE");
    };
    match record {
        Record::Entry { index, .. } if !wanted(index) => Ok(()),
        Record::Entry {
            index,
            term,
            kind,
            data,
        } => {
            let kind = match kind {
                0 => "normal".to_owned(),
                1 | 2 => "conf-change".to_owned(),
                other => format!("kind-{other}"),
            };
            let len = data.len();
            write!(
                out,
                "              entry {index} term {term} {kind} {len} bytes"
            )?;
            if arguments.data {
                out.write_all(b" ")?;
                for byte in data {
                    write!(out, "{byte:02x}")?;
                }
            }
            writeln!(out)
        }
        _ if ranged => Ok(()),
        Record::HardState(hs) => writeln!(out, "              {}", hard_state(&hs)),
        Record::Snapshot { index, term } => {
            writeln!(out, "              {}", snapshot(Some((index, term))))
        }
        Record::Trim { keep_from } => {
            writeln!(out, "              trimmed below {keep_from}")
        }
        Record::Roll { seq, .. } => {
            writeln!(out, "              goes on in segment {seq:x}")
        }
    }
}

fn hard_state(hs: &HardState) -> String {
    format!("term {} vote {:x} commit {}", hs.term, hs.vote, hs.commit)
}

fn snapshot(mark: Option<(u64, u64)>) -> String {
    match mark {
        None => "no snapshot mark".to_owned(),
        Some((index, term)) => format!("snapshot mark at {index} term {term}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use raftlog::{Backend, Entry, Log, Options};

    #[derive(Parser)]
    struct Line {
        #[command(subcommand)]
        wal: Wal,
    }

    /// Runs a command line over `dir`; its output, or what it failed with.
    fn utl(words: &[&str], dir: &Path) -> Result<String, String> {
        let dir = dir.to_str().unwrap();
        let line = Line::try_parse_from(["wal"].iter().chain(words).chain([&dir])).unwrap();
        let mut out = Vec::new();
        match run(line.wal, &mut out) {
            Ok(()) => Ok(String::from_utf8(out).unwrap()),
            Err(Failure::Told(what)) => Err(what),
            Err(Failure::Closed) => panic!("nothing was closed"),
        }
    }

    fn member(data_dir: &Path) {
        let (mut log, _) = Log::open(Options {
            segment_bytes: 64 << 10,
            backend: Backend::Sync,
            identity: [0xc, 0xe],
            ..Options::new(data_dir.join("member/log"))
        })
        .unwrap();
        for index in 1..=9 {
            let entry = Entry {
                index,
                term: 2,
                kind: u8::from(index == 1),
                data: bytes::Bytes::from(vec![index as u8; 3]),
            };
            let hs = HardState {
                term: 2,
                vote: 0xe,
                commit: index - 1,
            };
            log.append(&[entry], Some(hs)).unwrap();
            log.sync();
        }
        log.close();
    }

    #[test]
    fn a_sound_log_is_described() {
        let temp = tempfile::tempdir().unwrap();
        member(temp.path());
        let text = utl(&["verify"], temp.path()).unwrap();
        for part in [
            "sound: ",
            "cluster c member e\n",
            "9 entries from 1 to 9, 27 bytes\n",
            "term 2 vote e commit 8\n",
            "no snapshot mark\n",
            "a start would find: ",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        // The directory of the log itself will do as well, and what holds it as `log`.
        for below in ["member/log", "member"] {
            assert_eq!(utl(&["verify"], &temp.path().join(below)), Ok(text.clone()));
        }
        let refusal = utl(&["verify", "--committed", "10"], temp.path()).unwrap_err();
        assert!(refusal.contains("row 1"), "{refusal}");
    }

    #[test]
    fn a_dump_shows_what_is_asked_for() {
        let temp = tempfile::tempdir().unwrap();
        member(temp.path());
        let all = utl(&["dump"], temp.path()).unwrap();
        assert!(all.contains("cluster c member e\n"), "{all}");
        assert!(
            all.contains("entry 1 term 2 conf-change 3 bytes\n"),
            "{all}"
        );
        assert!(all.contains("term 2 vote e commit 8\n"), "{all}");
        assert!(all.contains("batch 10 seal"), "{all}");
        let some = utl(
            &["dump", "--start-index", "3", "--end-index", "4", "--data"],
            temp.path(),
        )
        .unwrap();
        assert!(some.contains("entry 3 term 2 normal 3 bytes 030303\n"));
        assert_eq!(some.matches("entry ").count(), 2, "{some}");
        let batches = utl(&["dump", "--batches"], temp.path()).unwrap();
        assert!(batches.contains("batch 1 ") && !batches.contains("entry "));
    }

    #[test]
    fn damage_is_refused_with_the_place_and_the_ways_out() {
        let temp = tempfile::tempdir().unwrap();
        member(temp.path());
        let path = temp.path().join("member/log/0000000000000001.log");
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[3 * 4096 + 70] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        let refusal = utl(&["verify"], temp.path()).unwrap_err();
        assert!(refusal.contains("0000000000000001.log at byte 12288"));
        assert!(refusal.contains("Entries from index 3"), "{refusal}");
        assert!(refusal.contains("Ways out"), "{refusal}");
        let shown = utl(&["dump"], temp.path()).unwrap();
        assert!(
            shown.contains("12288 batch 3 records 2 bytes 59 durable 2 TORN"),
            "{shown}"
        );
    }

    #[test]
    fn nothing_to_look_at_is_an_error() {
        let temp = tempfile::tempdir().unwrap();
        let error = utl(&["verify"], temp.path()).unwrap_err();
        assert!(error.contains("holds no log"), "{error}");
        let error = utl(&["dump"], &temp.path().join("absent")).unwrap_err();
        assert!(error.contains("absent"), "{error}");
    }
}
