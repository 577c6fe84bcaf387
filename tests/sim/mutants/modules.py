"""The sources that the mutants change."""

OWNER = "im_actors.core.owner"
KNOWLEDGE = "im_actors.core.knowledge"
REPLICA = "im_actors.core.replica"
SERVING = "im_actors.core.serving"
CONVERSATION = "im_actors.core.conversation"
DIFFUSION = "im_actors.core.diffusion"
TELLING = "im_actors.server.telling"
SESSIONS = "im_actors.core.sessions"
TAKEOVER = "im_actors.core.takeover"
OUTBOX = "im_actors.core.outbox"
INBOX = "im_actors.core.inbox"

# The simulation's own shells: what a shell owes to its machine is a rule too.
SIM_REPLICA = "tests.sim.replicas"
SIM_STORE = "tests.sim.store"
SIM_DISK = "tests.sim.disks"
