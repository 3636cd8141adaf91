"""The macro language of `marsadm view`: texts with `%name{argument}...`, which users may write too (docs/views.md).

parser.py cuts a text into nodes, evaluator.py runs them with limits, functions.py is the table of the language's own
functions, numbers.py formats amounts, files.py finds NAME.tpl. What is shown comes from `admin.views`, which hands the
evaluator one function to look a value up. Promise: whatever the text, evaluation ends with a text or a MarsError; it
writes nothing but `%setlink` below userspace/, and never runs Python or a program.
"""
