#!/bin/bash
# Start a Slurm cluster of two nodes on this machine, for tests and for trying deploy/slurm.sbatch. It runs until it is told
# to end (Ctrl-C, SIGTERM), as the user who starts it, and writes into DIR alone: key, state, logs.
#
#   apt-get install slurmctld slurmd slurm-client munge
#   bash tests/slurm_cluster.sh DIR &
#   export SLURM_CONF=DIR/slurm.conf
#   sinfo; sbatch ...; squeue
#
# Jobs of partition `urgent` preempt those of `low`, the default, which get SIGTERM two minutes before they are killed.
set -euo pipefail
[ $# -eq 1 ] || { echo "usage: bash tests/slurm_cluster.sh DIR" >&2; exit 2; }
mkdir -p "$1"
dir=$(cd "$1" && pwd) user=$(id -un) host=$(hostname)
PATH=$PATH:/usr/sbin:/sbin

# Three ports that are free now.
read -r controller first second < <(python3 -c '
import socket
sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
print(*(server.getsockname()[1] for server in sockets))')

cat >"$dir/slurm.conf" <<CONF
ClusterName=loopback
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$controller
SlurmUser=$user
SlurmdUser=$user
AuthType=auth/munge
CredType=cred/munge
# A requeued job starts again only once its credential has expired, by default after two minutes.
AuthInfo=socket=$dir/munge.socket,cred_expire=5
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool-%n
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd-%n.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd-%n.log
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
# By default, jobs that wait for their time are looked at twice a minute.
SchedulerParameters=sched_interval=2,bf_interval=2
NodeName=node1 NodeHostname=$host NodeAddr=127.0.0.1 Port=$first CPUs=1
NodeName=node2 NodeHostname=$host NodeAddr=127.0.0.1 Port=$second CPUs=1
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 GraceTime=120
PartitionName=urgent Nodes=ALL PriorityTier=2 PreemptMode=OFF
CONF
mkdir -p "$dir/state" "$dir/spool-node1" "$dir/spool-node2"
[ -e "$dir/munge.key" ] || mungekey --create --keyfile "$dir/munge.key"
export SLURM_CONF=$dir/slurm.conf

daemons=()
stop() {
    trap - EXIT
    timeout 5 scancel --user "$user" || true # jobs outlive the daemons
    for _ in {1..90}; do # KillWait is 30 s
        [ -n "$(timeout 5 squeue --noheader --states running,completing)" ] || break
        sleep 0.5
    done
    kill "${daemons[@]}"
    wait
}
trap stop EXIT
trap 'exit 143' TERM
munged --foreground --force --key-file "$dir/munge.key" --socket "$dir/munge.socket" --pid-file "$dir/munged.pid" \
    --log-file "$dir/munged.log" --seed-file "$dir/munge.seed" --num-threads 2 2>"$dir/munged.err" &
daemons+=($!)
until [ -S "$dir/munge.socket" ]; do sleep 0.1; done
slurmctld -D >"$dir/slurmctld.out" 2>&1 &
daemons+=($!)
for node in node1 node2; do
    slurmd -D -N "$node" >"$dir/slurmd-$node.out" 2>&1 &
    daemons+=($!)
done
wait -n
echo "error: a daemon has ended; see $dir/*.log" >&2
exit 1
