"""What `marsadm view` and its kin show (docs/views.md): values, macros over them, and one structure as JSON.

look.py is one picture with what was worked out of it; switches.py, amounts.py, devices.py, messages.py and cluster.py
are tables of values (table.py: their type and how they become text); macros.py has the texts of the built-in macros;
source.py joins all that to the macro language (`admin.macro`); structure.py is the JSON. Promise: nothing here changes
anything, but for `%setlink`; a value is the same in `view-NAME`, in a macro and in JSON.
"""
