/** Nodes that a template of this package marks as optional are left out where the host does not have them. */
import { app } from '../../scripts/app.js'

app.registerExtension({
    name: 'Steer.Templates',
    beforeConfigureGraph(data) {
        const lacking = ({ type, properties }) => properties?.steer_optional && !(type in LiteGraph.registered_node_types)
        const gone = new Set((data.nodes ?? []).filter(lacking).map(({ id }) => id))
        if (!gone.size) return
        data.nodes = data.nodes.filter(({ id }) => !gone.has(id))
        data.links = data.links.filter(([, , , target]) => !gone.has(target))
        const left = new Set(data.links.map(([id]) => id))
        for (const output of data.nodes.flatMap(({ outputs }) => outputs ?? []))
            output.links = output.links?.filter((id) => left.has(id))
    },
})
