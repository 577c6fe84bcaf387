"""What the full-screen chat takes, in words."""

KEYS = """\
up, down, ctrl-p, ctrl-n   choose a conversation
enter                      send what is typed; on a label: show what is folded under it, or not
page up, page down         older, newer
ctrl-r                     take the last message of your own back, for everybody
ctrl-e                     edit it; escape leaves it as it is
ctrl-c, ctrl-d             leave; what is pending is kept and sent next time"""
COMMANDS = """\
/new USER                  talk with another user
/join SESSION              open a conversation by its name
/find TEXT                 choose the next conversation whose name has it
/pin, /unpin, /mute, /unmute, /hide
/fold LABEL, /unfold       put the conversation under a label, or back
/group create NAME [USER...], /group add USER..., /group remove USER...
/group join NAME, /group leave, /group members
/readers                   who has read your last message
/where                     what is pending, and why
/help                      this; escape puts it away
/quit                      leave"""
