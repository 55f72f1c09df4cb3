// Names of modules and means over them.

/** Where a module of a grid is, such as "layer 3 q_proj". */
export const placeOf = ({ rows, columns, row, column }, k) => `layer ${columns[column[k]]} ${rows[row[k]]}`;

export const sum = (values) => values.reduce((all, value) => all + value, 0);

/** The mean, or 0 of nothing. */
export const mean = (values) => sum(values) / (values.length || 1);
