"""`warmlane capacity`: the formulas, the report, the plot."""
