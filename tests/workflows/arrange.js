// What build.py has the front end do with a loaded graph.
({
  // width and height that each node asks for, by id
  sizes: () => app.graph.nodes.map((node) => [String(node.id), [...node.computeSize()]]),

  // in Nodes 2.0: the heights of the elements, titles included
  heights: () => app.graph.nodes.map((node) => {
    const element = document.querySelector(`[data-node-id="${node.id}"]`)
    return [String(node.id), (element?.getBoundingClientRect().height ?? 0) / app.canvas.ds.scale]
  }),

  // All but the outer nodes as one subgraph, with named sockets and the widgets that are asked for; the node that
  // stands for it, and what is in it.
  subgraph: ({ title, outer, asked, nodes, groups }) => {
    const at = (id) => app.graph.getNodeById(Number(id))
    const apart = new Map(outer.map(([id, name]) => [at(id), name]))
    const known = new Map(app.graph.nodes.map((node) => [String(node.id), node.title]))
    const { subgraph, node } = app.graph.convertToSubgraph(new Set(app.graph.nodes.filter((one) => !apart.has(one))))
    const inside = (id) => subgraph.nodes.find((one) => one.title === known.get(id))
    for (const [one, name] of apart) {
      for (const slot of one.outputs ?? []) {
        for (const link of slot.links ?? []) subgraph.renameInput(subgraph.inputs[app.graph.links.get(link).target_slot], name)
      }
    }
    subgraph.renameOutput(subgraph.outputs[0], 'video')
    for (const input of [...subgraph.inputs]) {
      if (!input.label) subgraph.removeInput(input)  // what it shows unasked
    }
    for (const [name, widget, ids] of asked) {
      let input
      for (const id of ids) {
        const target = inside(id), slot = target.inputs.find((one) => one.name === widget)
        input ??= subgraph.addInput(name, slot.type)
        input.connect(slot, target)
      }
    }
    let right = 0
    for (const [id, [x, y, width, height]] of Object.entries(nodes)) {
      const one = inside(id)
      one.setSize([width, height])
      one.pos = [x, y]
      right = Math.max(right, x + width)
      for (const widget of one.widgets ?? []) {
        if (widget.name === 'control_after_generate') widget.value = 'fixed'
      }
    }
    for (const [name, [x, y, width, height]] of groups) {
      const group = new LiteGraph.LGraphGroup(name)
      group.pos = [x, y]
      group.size = [width, height]
      subgraph.add(group)
    }
    subgraph.inputNode.pos = [-220, 70]
    subgraph.outputNode.pos = [right + 90, 70]
    subgraph.name = node.title = title
    node.pos = [0, 0]
    node.setSize([300, node.computeSize()[1]])
    return JSON.stringify([node.serialize(), subgraph.asSerialisable()])
  },

  place: ({ nodes, groups, note, text }) => {
    for (const [id, [x, y, width, height]] of Object.entries(nodes)) {
      const node = app.graph.getNodeById(Number(id))
      node.setSize([width, height])
      node.pos = [x, y]
      for (const widget of node.widgets ?? []) {
        if (widget.name === 'control_after_generate') widget.value = 'fixed'
      }
    }
    for (const [title, [x, y, width, height]] of groups) {
      const group = new LiteGraph.LGraphGroup(title)
      group.pos = [x, y]
      group.size = [width, height]
      app.graph.add(group)
    }
    const [x, y, width, height] = note
    const written = LiteGraph.createNode('MarkdownNote')
    app.graph.add(written)
    written.title = 'Read me'
    written.pos = [x, y]
    written.setSize([width, height])
    written.widgets[0].value = text
    const saved = app.graph.serialize()
    saved.extra = {}
    return JSON.stringify(saved)
  },
})
