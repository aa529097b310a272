//! Alarms: logged, persisted, and in force on every member until one deactivates them.

use super::{Applier, Failure, buckets, txn};
use prost::Message;
use quorate_proto::etcdserverpb as pb;
use quorate_proto::etcdserverpb::AlarmType;
use quorate_proto::etcdserverpb::alarm_request::AlarmAction;
use std::collections::BTreeSet;
use std::ops::ControlFlow;

/// The active alarms, by type, then member.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Alarms(BTreeSet<(i32, u64)>);

impl Alarms {
    /// The active alarms of a view.
    pub fn load(view: &engine::View) -> engine::Result<Alarms> {
        let (mut set, mut broken) = (BTreeSet::new(), None);
        view.sys_scan(
            buckets::ALARM,
            &mut |key, _| match pb::AlarmMember::decode(key) {
                Ok(a) => {
                    set.insert((a.alarm, a.member_id));
                    ControlFlow::Continue(())
                }
                Err(e) => {
                    broken = Some(e);
                    ControlFlow::Break(())
                }
            },
        )?;
        match broken {
            Some(e) => Err(engine::Error::Corrupt(format!("an alarm record: {e}"))),
            None => Ok(Alarms(set)),
        }
    }

    /// Whether any member has raised this alarm.
    pub fn any(&self, alarm: AlarmType) -> bool {
        let of_type = (alarm as i32, 0)..=(alarm as i32, u64::MAX);
        self.0.range(of_type).next().is_some()
    }

    /// Whether this member has raised this alarm.
    pub fn has(&self, member_id: u64, alarm: AlarmType) -> bool {
        self.0.contains(&(alarm as i32, member_id))
    }

    /// The alarms of a type (NONE: all types), of all members: etcd's listing never looks at the
    /// member of the request.
    pub fn list(&self, alarm: i32) -> Vec<pb::AlarmMember> {
        self.0
            .iter()
            .filter(|&&(a, _)| alarm == AlarmType::None as i32 || a == alarm)
            .map(|&(alarm, member_id)| pb::AlarmMember { member_id, alarm })
            .collect()
    }
}

impl Applier {
    pub(super) fn alarm(&mut self, r: &pb::AlarmRequest) -> Result<pb::AlarmResponse, Failure> {
        let affected = match AlarmAction::try_from(r.action) {
            Ok(AlarmAction::Get) => self.alarms.list(r.alarm),
            Ok(AlarmAction::Activate) => self.activate(r)?,
            Ok(AlarmAction::Deactivate) => self.deactivate(r)?,
            Err(_) => Vec::new(),
        };
        Ok(pb::AlarmResponse {
            header: Some(txn::header(self.writer.revision())),
            alarms: affected,
        })
    }

    /// Types other than the two that mean something are not raised: NONE is defined to do nothing, and
    /// nothing could act on an unknown one.
    fn activate(&mut self, r: &pb::AlarmRequest) -> engine::Result<Vec<pb::AlarmMember>> {
        if !matches!(
            AlarmType::try_from(r.alarm),
            Ok(AlarmType::Nospace | AlarmType::Corrupt)
        ) {
            return Ok(Vec::new());
        }
        let member = of(r);
        if self.alarms.0.insert((r.alarm, r.member_id)) {
            self.writer
                .sys_put(buckets::ALARM, &member.encode_to_vec(), &[])?;
        }
        Ok(vec![member])
    }

    fn deactivate(&mut self, r: &pb::AlarmRequest) -> engine::Result<Vec<pb::AlarmMember>> {
        if !self.alarms.0.remove(&(r.alarm, r.member_id)) {
            return Ok(Vec::new());
        }
        let member = of(r);
        self.writer
            .sys_delete(buckets::ALARM, &member.encode_to_vec())?;
        Ok(vec![member])
    }
}

fn of(r: &pb::AlarmRequest) -> pb::AlarmMember {
    pb::AlarmMember {
        member_id: r.member_id,
        alarm: r.alarm,
    }
}
