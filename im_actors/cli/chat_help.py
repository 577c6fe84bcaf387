"""What the full-screen chat takes, in words that fit beside the list on 80 columns."""

KEYS = """\
up, down, ctrl-p, ctrl-n  choose a conversation
enter                     send; on a label: unfold it
page up, page down        older, newer
ctrl-r                    take your last message back
ctrl-e                    edit it (escape: do not)
ctrl-c, ctrl-d            leave; what is pending is
                          kept and sent next time"""
COMMANDS = """\
/new USER     talk with another user
/join NAME    open a conversation by its name
/find TEXT    choose the next one that is called so
/pin /unpin /mute /unmute /hide
/fold LABEL   put it under a label; /unfold
/group create NAME USER...    make a group
/group add USER...            or remove USER...
/group join NAME              or leave, or members
/readers      who has read your last message
/online       who else is connected
/where        what is pending, and why
/help /quit"""
